"""Texts of fixed pictures in TensorBoard, trackio, MLflow and wandb, read back from their files."""

from __future__ import annotations

import html
import importlib.util
import io
import json
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import CHECKOUT, run_checked
from PIL import Image

from blip_recipe import RetrievalTrainer, VqaTrainer
from blip_recipe.training.speed import Stopwatch
from blip_recipe.training.tables import align, choose_ids, find_writers, format_cell

KEYS: dict[str, Any] = {
    **{"max_steps": 3, "max_train_samples": 16, "max_eval_samples": 12, "per_device_train_batch_size": 4},
    **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1},
    # The last table and `predictions.jsonl` then have the same rows and weights.
    **{"eval_split": "validation", "test_split": "validation", "allow_shared_images": True, "metrics": ["bleu"]},
    **{"tracked_pictures": 3, "use_cpu": True, "learning_rate": 0.01, "generation_max_length": 12},
}
TRACKERS = [name for name in ("tensorboard", "trackio", "mlflow", "wandb") if importlib.util.find_spec(name)]


@pytest.fixture(scope="module", name="run")
def fixture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reports to all installed trackers."""
    place = tmp_path_factory.mktemp("tracked")
    recipe = json.loads((CHECKOUT / "recipes" / "shapes_tiny.json").read_text())
    for name in ("$schema", "load_best_model_at_end", "metric_for_best_model", "eval_metrics"):
        recipe.pop(name, None)
    (place / "recipe.json").write_text(json.dumps(recipe | KEYS | {"report_to": TRACKERS}))
    env = {
        **{"TRACKIO_DIR": str(place / "trackio"), "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}"},
        **{"WANDB_MODE": "offline", "WANDB_DIR": str(place), "WANDB_SILENT": "true"},
    }
    run_checked("blip_recipe.finetune", "recipe.json", "--output_dir", "whole", env=env, cwd=place)
    return place


def predicted(run: Path) -> dict[str, list[str]]:
    """The references of each caption of the finished model."""
    lines = map(json.loads, (run / "whole" / "predictions.jsonl").read_text().splitlines())
    return {" / ".join(line["references"]): line["caption"] for line in lines}


Read = Callable[[Path], list[list[dict[str, Any]]]]


def read_tensorboard(run: Path) -> list[list[dict[str, Any]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next((run / "whole" / "runs").iterdir())
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    for number in (1, 2, 3):
        (picture,) = events.Images(f"eval/picture_{number}")
        assert Image.open(io.BytesIO(picture.encoded_image_string)).size == (96, 96)
    found = events.Tensors("eval/texts/text_summary")
    assert [each.step for each in found] == [1, 2, 3]
    return [_parse_markdown(each.tensor_proto.string_val[0].decode()) for each in found]


def _parse_markdown(text: str) -> list[dict[str, str]]:
    head, _, *body = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines())
    return [dict(zip(head, row[1:], strict=True)) for row in body]


def read_trackio(run: Path) -> list[list[dict[str, Any]]]:
    with sqlite3.connect(run / "trackio" / "huggingface.db") as database:
        logged = [json.loads(line) for (line,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    tables = [line for line in logged if "eval/texts" in line]
    assert [each["train/global_step"] for each in tables] == [1, 2, 3]
    for row in tables[0]["eval/texts"]["_value"]:
        assert Image.open(run / "trackio" / "media" / row["picture"]["file_path"]).size == (96, 96)
    return [each["eval/texts"]["_value"] for each in tables]


def read_mlflow(run: Path) -> list[list[dict[str, Any]]]:
    (file,) = run.glob("mlruns/*/*/artifacts/eval_texts.json")
    content = json.loads(file.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert Image.open(file.parent / rows[0]["picture"]["filepath"]).size == (96, 96)
    return [[row for row in rows if row["step"] == step] for step in (1, 2, 3)]


def read_wandb(run: Path) -> list[list[dict[str, Any]]]:
    files = run.glob("wandb/offline-run-*/files/media/table/eval/texts_*.table.json")
    tables = [json.loads(path.read_text()) for path in sorted(files, key=lambda path: int(path.name.split("_")[1]))]
    return [[dict(zip(each["columns"], row, strict=True)) for row in each["data"]] for each in tables]


@pytest.mark.parametrize(
    ("tracker", "read"),
    [
        ("tensorboard", read_tensorboard),
        ("trackio", read_trackio),
        ("mlflow", read_mlflow),
        ("wandb", read_wandb),
    ],
)
def test_the_captions_of_the_same_pictures_are_read_back_after_each_evaluation(
    tracker: str, read: Read, run: Path
) -> None:
    if tracker not in TRACKERS:
        pytest.skip(f"{tracker} is not installed")
    tables = read(run)
    assert len(tables) == 3
    captions = predicted(run)
    for table in tables:
        assert [row["references"] for row in table] == [row["references"] for row in tables[0]]
        assert len({row["references"] for row in table}) == 3
    assert [row["caption"] for row in tables[-1]] == [captions[row["references"]] for row in tables[-1]]
    assert all(0 <= float(row["bleu_1"]) <= 1 for row in tables[-1])


def test_log_lines_have_gradient_norm_tokens_per_second_and_the_share_of_waiting(run: Path) -> None:
    history = json.loads((run / "whole" / "trainer_state.json").read_text())["log_history"]
    lines = [entry for entry in history if "loss" in entry]
    assert len(lines) == 3
    for line in lines:
        assert line["grad_norm"] > 0
        assert line["tokens_per_second"] > 0
        assert 0 < line["data_wait_share"] < 1


def test_chosen_rows_depend_on_seed_and_id_alone() -> None:
    ids = list(range(100))
    chosen = choose_ids(ids, 8, seed=42)
    assert len(set(chosen)) == 8
    assert choose_ids([*reversed(ids), *ids], 8, seed=42) == chosen
    assert choose_ids(ids, 8, seed=43) != chosen
    assert choose_ids(ids[:3], 8, seed=42) != ids
    assert sorted(choose_ids(ids[:3], 8, seed=42)) == [0, 1, 2]


def test_a_text_stays_text_in_a_cell() -> None:
    text = "<script>alert(1)</script>\n| a *red* `square`"
    cell = format_cell(text)
    assert "<" not in cell
    assert "\n" not in cell
    assert re.sub(r"\\(.)", r"\1", html.unescape(cell)) == text.replace("\n", " ")
    assert (format_cell(None), format_cell(0.25), format_cell(3)) == ("", "0.25", "3")


def test_rows_get_the_same_columns() -> None:
    assert align([{"a": "x", "b": 0.123456}, {"a": "y"}]) == [{"a": "x", "b": 0.1235}, {"a": "y", "b": None}]


def test_questions_and_matches_have_columns_of_their_own() -> None:
    asked = {"question": "how many", "answer": "2", "answers": ["2", "two"], "scores": {"vqa_accuracy": 0.6}}
    row = VqaTrainer.to_table_row({"question_id": 1, "image_id": 2, **asked})
    assert row == {"question": "how many", "answer": "2", "answers": "2 / two", "vqa_accuracy": 0.6}
    ranked = {"texts": ["a dog", "a cat"], "text_scores": [0.9, 0.1], "rank": 2, "captions": ["a cat", "one cat"]}
    row = RetrievalTrainer.to_table_row({"image_id": 2, **ranked, "scores": {"text_recall_1": 0.0}})
    assert row == {"best text": "a dog", "score": 0.9, "rank": 2, "captions": "a cat / one cat"}


def test_evaluations_do_not_count_as_time_and_waits_do() -> None:
    watch = Stopwatch()
    with watch.pause():  # before the training
        time.sleep(0.05)
    watch.start()
    batches = watch.time_waits(time.sleep(0.02) or batch for batch in range(1, 3))  # type: ignore[func-returns-value]
    assert list(batches) == [1, 2]
    with watch.pause():
        time.sleep(0.5)
    watch.tokens = 7
    seconds, waited, tokens = watch.lap()
    assert 0.04 <= waited <= seconds < 0.5
    assert tokens == 7
    assert watch.lap()[1:] == (0, 0)


def test_other_callbacks_have_no_tables() -> None:
    from transformers import PrinterCallback

    assert find_writers([PrinterCallback()]) == []
