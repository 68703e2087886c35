"""The main job answers questions: its loss is a mean over questions, its scores are counted once, it learns."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_checked, run_module
from safetensors.torch import load_file
from transformers import BlipForQuestionAnswering

from blip_recipe.compare import main as compare
from blip_recipe.data import dataset as picture_dataset
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.data import QuestionDataset, load_questions
from blip_recipe.vqa.metrics import is_exact_match, vqa_accuracy
from blip_recipe.vqa.trainer import ImageSampler

RECIPE = "recipes/shapes_vqa.json"
QUIET: tuple[str, ...] = (
    *("--eval_strategy", "no", "--load_best_model_at_end", "false"),
    *("--dataloader_num_workers", "0", "--use_cpu", "true"),
)
ONE_STEP: tuple[str, ...] = (
    *("--max_steps", "1", "--optim", "sgd", "--learning_rate", "0.1", "--warmup_steps", "0", "--save_strategy", "no"),
    *("--max_train_samples", "24", "--max_eval_samples", "5", "--label_smoothing_factor", "0.1", "--seed", "3"),
)
SHORT: tuple[str, ...] = (
    *("--max_train_samples", "1500", "--max_eval_samples", "150"),
    *("--max_steps", "100", "--warmup_steps", "20", "--save_strategy", "no", "--per_device_train_batch_size", "64"),
)


def step(output_dir: Path, batch: int, accumulation: int = 1, processes: int = 1) -> dict[str, torch.Tensor]:
    """The weights after one optimiser step."""
    size: tuple[str, ...] = (
        "--per_device_train_batch_size",
        str(batch),
        "--gradient_accumulation_steps",
        str(accumulation),
    )
    options: tuple[str | Path, ...] = (*ONE_STEP, *QUIET, *size, "--output_dir", output_dir)
    run_checked("blip_recipe.finetune", RECIPE, *options, processes=processes)
    return load_file(output_dir / "model.safetensors")


def test_one_step_is_the_same_step_for_any_batch_accumulation_and_number_of_processes(tmp_path: Path) -> None:
    whole = step(tmp_path / "whole", 8)
    cut = {"accumulated": step(tmp_path / "accumulated", 2, 4), "two": step(tmp_path / "two", 2, 2, processes=2)}
    for name, weights in cut.items():
        assert weights.keys() == whole.keys()
        for key, weight in weights.items():
            torch.testing.assert_close(weight, whole[key], atol=1e-6, rtol=1e-5, msg=f"{name}: {key}")
    losses = {
        name: json.loads((tmp_path / name / "all_results.json").read_text())["test_loss"]
        for name in ("whole", "accumulated", "two")
    }
    assert losses["accumulated"] == pytest.approx(losses["whole"], abs=1e-5)
    assert losses["two"] == pytest.approx(losses["whole"], abs=1e-5)
    predictions = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("whole", "two")]
    assert predictions[0] == predictions[1]
    assert len(predictions[0].splitlines()) == 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on few scenes: long enough to learn how the annotators answer, not to see."""
    output_dir = tmp_path_factory.mktemp("run") / "answers"
    run_checked("blip_recipe.finetune", RECIPE, *QUIET, *SHORT, "--output_dir", output_dir, timeout=900)
    return output_dir


def test_questions_about_an_image_come_together_in_a_new_order_each_epoch() -> None:
    image_ids = ["a", "b", "a", "c", "b", "a"]
    sampler = ImageSampler(image_ids, seed=0)
    orders = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert order == list(sampler), "a resumed epoch has another order"
        assert sorted(order) == list(range(len(sampler))) == list(range(6))
        assert len(list(groupby(order, key=lambda row: image_ids[row]))) == 3
        orders.append(order)
    assert len({tuple(order) for order in orders}) > 1


def test_a_picture_is_read_once_for_its_questions_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_questions(VqaDataArguments(dataset_name="shapes"), "validation", max_samples=6)
    dataset = QuestionDataset(rows, image_size=96, normalize=True, augmentation="blip", seed=0)
    alone = [dataset[row] for row in range(6)]
    read_pixels, read = picture_dataset.read_pixels, 0

    def count(image: Any) -> torch.Tensor:
        nonlocal read
        read += 1
        return read_pixels(image)

    monkeypatch.setattr(picture_dataset, "read_pixels", count)
    together = dataset.__getitems__(list(range(6)))
    assert read == len(set(rows["image_id"])) == 2
    for each, one in zip(together, alone, strict=True):
        assert {**each, "image": None} == {**one, "image": None}
        assert torch.equal(each["image"], alone[each["image_key"] * 3]["image"])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_it_learns(run: Path) -> None:
    results = json.loads((run / "all_results.json").read_text())
    assert results["baseline_vqa_accuracy"] < 0.1
    assert results["test_vqa_accuracy"] > 0.3
    assert results["test_loss"] < 0.5 * results["baseline_loss"]


def test_scores_are_those_of_the_predictions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((run / "all_results.json").read_text())
    rows = load_questions(VqaDataArguments(dataset_name="shapes"), "test", max_samples=150)
    predictions = read(run / "predictions.jsonl")
    assert [each["question_id"] for each in predictions] == rows["question_id"][:]
    before = read(run / "baseline_predictions.jsonl")
    assert [each["question_id"] for each in before] == rows["question_id"][:]
    right = [each["scores"]["vqa_accuracy"] for each in before]
    assert sum(right) / len(right) == pytest.approx(results["baseline_vqa_accuracy"], abs=1e-12)
    assert results["test_vqa_accuracy_low"] < results["test_vqa_accuracy"] < results["test_vqa_accuracy_high"]
    assert "baseline_vqa_accuracy_low" in results
    assert not [name for name in results if name.startswith("eval_") and name.endswith(("_low", "_p_value"))]
    compare([str(run / "baseline_predictions.jsonl"), str(run / "predictions.jsonl"), "--json"])
    found = json.loads(capsys.readouterr().out)
    (score,) = (found["scores"][name] for name in ["vqa_accuracy"])
    assert found["questions"] == 150
    assert score["p_value"] == results["test_vqa_accuracy_p_value"] == pytest.approx(1 / 1001)
    assert score["second_interval"] == [results["test_vqa_accuracy_low"], results["test_vqa_accuracy_high"]]
    for row, each in zip(rows, predictions, strict=True):
        assert list(each) == ["image_id", "question_id", "question", "answer", "answers", "scores"]
        assert (each["question"], each["answers"]) == (row["question"], row["answers"])
        accuracy, match = (score(each["answer"], row["answers"]) for score in (vqa_accuracy, is_exact_match))
        assert each["scores"] == {"vqa_accuracy": accuracy, "exact_match": match}
    for name in ("vqa_accuracy", "exact_match"):
        assert results[f"test_{name}"] == pytest.approx(sum(each["scores"][name] for each in predictions) / 150)


def test_the_saved_model_is_a_stock_model_that_answers_the_same(run: Path) -> None:
    from transformers import BlipProcessor

    from blip_recipe.data.images import open_image

    assert json.loads((run / "config.json").read_text())["architectures"] == ["BlipForQuestionAnswering"]
    stock, processor = BlipForQuestionAnswering.from_pretrained(run).eval(), BlipProcessor.from_pretrained(run)
    rows = load_questions(VqaDataArguments(dataset_name="shapes"), "test", max_samples=12)
    for row, prediction in zip(rows, read(run / "predictions.jsonl"), strict=False):
        inputs = processor(images=open_image(row["image"]), text=row["question"], return_tensors="pt")
        ids = stock.generate(inputs.input_ids, inputs.pixel_values, num_beams=1, max_length=10, do_sample=False)
        assert processor.decode(ids[0], skip_special_tokens=True) == prediction["answer"]


def test_the_card_speaks_of_questions(run: Path) -> None:
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: visual-question-answering" in card
    assert "# BLIP answers: shapes" in card
    assert "python -m blip_recipe.answer" in card
    accuracy = json.loads((run / "all_results.json").read_text())["test_vqa_accuracy"]
    assert f"**{accuracy:.4f}**" in card
    assert "first 150 questions" in card
    assert "caption" not in card.lower().replace("image-captioning", "")


def test_evaluating_the_finished_model_gives_its_scores(run: Path, tmp_path: Path) -> None:
    what = ("--dataset_name", "shapes", "--eval_split", "test", "--max_eval_samples", "150")
    run_checked("blip_recipe.evaluate", "--model", run, *what, "--output_dir", tmp_path)
    again, results = (json.loads((folder / "all_results.json").read_text()) for folder in (tmp_path, run))
    for name in ("loss", "vqa_accuracy"):
        assert again[f"eval_{name}"] == pytest.approx(results[f"test_{name}"], abs=1e-6)


def test_decoding_of_an_evaluation_that_ranks_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    what = ("--dataset_name=shapes", "--eval_split=test", "--max_eval_samples=3", f"--output_dir={tmp_path / 'out'}")
    ranked = ("--answer_list", tmp_path / "answers.txt", "--generation_num_beams=2")
    done = run_module("blip_recipe.evaluate", "--model", run, *what, *ranked)
    assert done.returncode == 2
    assert "generation_num_beams is 2, but answer_list is" in done.stderr
    assert "Set answer_list to null" in done.stderr
    run_checked("blip_recipe.evaluate", "--model", run, *what, *ranked[:2])


def test_rows_without_question_or_answer_stop_the_run_before_it_begins(tmp_path: Path) -> None:
    from captioners import draw_pictures

    pictures = draw_pictures(tmp_path / "data" / "train", 3)
    lines = [
        {"file_name": pictures[0].name, "question": "what is it?", "answer": "a circle"},
        {"file_name": pictures[1].name, "question": " ", "answer": "red"},
        {"file_name": pictures[2].name, "question": "what colour?", "answer": ""},
    ]
    (tmp_path / "data" / "train" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = ("--train_split=train", "--eval_split=train", "--test_split=train", "--allow_shared_images=true")
    data = ("--dataset_name", tmp_path / "data", *splits)
    done = run_module("blip_recipe.finetune", RECIPE, *QUIET, *data, "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert "6 of 9 rows cannot be used" in done.stderr
    assert "it has no question" in done.stderr
    assert "it has no answer" in done.stderr


def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    """With dropout, drop path and augmentation, from a checkpoint within an epoch."""
    keys = (
        *("--max_train_samples", "36", "--max_eval_samples", "6", "--max_steps", "6", "--save_strategy", "steps"),
        *("--save_steps", "2", "--save_total_limit", "4", "--per_device_train_batch_size", "8", "--warmup_steps", "1"),
        *("--augmentation", "blip", "--drop_path_rate", "0.3", "--hidden_dropout_prob", "0.1"),
        *("--attention_probs_dropout_prob", "0.1", "--logging_steps", "1"),
    )
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    run_checked("blip_recipe.finetune", RECIPE, *QUIET, *keys, "--output_dir", unbroken)
    again = ("--resume_from_checkpoint", unbroken / "checkpoint-2", "--output_dir", resumed)
    run_checked("blip_recipe.finetune", RECIPE, *QUIET, *keys, *again)
    for name in ("model.safetensors", "predictions.jsonl", "checkpoint-6/model.safetensors"):
        assert (unbroken / name).read_bytes() == (resumed / name).read_bytes(), name
    card = (resumed / "README.md").read_text(encoding="utf-8")
    assert "| drop path | 0.3 in the last layer of the image encoder |" in card
    assert "| dropout of the text | 0.1 (layers), 0.1 (attention) |" in card
    losses = [
        [each["loss"] for each in json.loads((run / "trainer_state.json").read_text())["log_history"] if "loss" in each]
        for run in (unbroken, resumed)
    ]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
