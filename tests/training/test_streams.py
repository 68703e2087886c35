"""Every task trains on a stream as on rows that were loaded before, and goes on where it was killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_checked, start_module
from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import Image as ImageFeature
from safetensors.torch import load_file

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.captions import captions_id
from blip_recipe.data.images import open_image
from blip_recipe.data.load import load_split, load_splits
from blip_recipe.data.shapes import encode_picture
from blip_recipe.data.shards import open_stream
from blip_recipe.data.streaming import PictureStream
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main
from blip_recipe.pretraining.tiny import build_tiny_pretrained
from blip_recipe.pretraining.trainer import PretrainTrainer
from blip_recipe.retrieval.tiny import build_tiny_retriever
from blip_recipe.retrieval.trainer import RetrievalTrainer
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.data import build_dataset, load_questions
from blip_recipe.vqa.questions import questions_vocabulary
from blip_recipe.vqa.streams import open_questions
from blip_recipe.vqa.tiny import build_tiny_answerer
from blip_recipe.vqa.trainer import VqaTrainer
from blip_recipe.vqa.training_arguments import VqaTrainingArguments

ROWS, BATCH = 24, 8
TASKS: dict[str, Any] = {
    "vqa": (VqaTrainer, build_tiny_answerer, open_questions),
    "retrieval": (RetrievalTrainer, build_tiny_retriever, open_stream),
    "pretrain": (PretrainTrainer, build_tiny_pretrained, open_stream),
}
CARD = "---\ndataset_info:\n  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: {rows}\n---\n"


def rows_of(task: str) -> Dataset:
    """Drawn scenes with texts; two of them have the same caption."""
    if task == "vqa":
        table = load_questions(VqaDataArguments(dataset_name="shapes"), "train", max_samples=4 * ROWS)
        table = table.select([row for row in range(len(table)) if row % 12 < 3]).flatten_indices()
        assert len(table) == ROWS
        return drawn(table.add_column("answer_weight", [0.5 + row % 2 for row in range(ROWS)]))
    table = load_split(CaptionDataArguments(dataset_name="shapes"), "train", max_samples=ROWS)
    captions = [each[:1] for each in table["captions"]]
    captions[5] = captions[1]
    return drawn(table.remove_columns("captions").add_column("captions", captions))


def drawn(table: Dataset) -> Dataset:
    """The rows with the files of their scenes, which `shapes` draws when they are read."""
    pictures = [{"bytes": encode_picture(open_image(each)), "path": None} for each in table["image"]]
    column = Dataset.from_dict({"image": pictures}, features=Features({"image": ImageFeature(decode=False)}))
    return concatenate_datasets([table.remove_columns("image"), column], axis=1)


def write_shards(folder: Path, table: Dataset, parts: int = 1) -> Path:
    """Parquet shards, with a card that tells the number of rows."""
    folder.mkdir()
    (folder / "README.md").write_text(CARD.format(rows=len(table)))
    table = table.cast(Features({**table.features, "image": ImageFeature()}))
    for part in range(parts):
        table.shard(parts, part).to_parquet(folder / f"train-{part}.parquet")
    return folder


def arguments_of(task: str, folder: Path, **keys: Any) -> Any:
    kind = VqaDataArguments if task == "vqa" else CaptionDataArguments
    return kind(dataset_name=str(folder), streaming=True, **keys)


def train(task: str, output_dir: Path, dataset: Any, **keys: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and norms of the gradients of a pass, and the weights after it."""
    trainer_class, build, _ = TASKS[task]
    torch.manual_seed(0)
    model, processor = build(questions_vocabulary())
    own = {"metrics": ["exact_match"], "generation_max_length": 8} if task == "pretrain" else {}
    own |= {} if task == "vqa" else {"queue_size": 10, "momentum": 0.5}
    args = trainer_class.arguments_class(
        str(output_dir),
        use_cpu=True,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        augmentation="none",
        num_train_epochs=1,
        max_grad_norm=1.0,
        report_to="none",
        **own,
        **keys,
    )
    trainer = trainer_class(model, args, dataset, processing_class=processor)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return [value for log in logs for value in (log["loss"], log["grad_norm"])], model.state_dict()


@pytest.mark.parametrize("task", TASKS)
def test_a_pass_is_the_epoch_on_the_same_rows_in_the_same_order(task: str, tmp_path: Path) -> None:
    """The weight of soft targets too, which grows over the first pass as over the first epoch."""
    table = rows_of(task)
    folder = write_shards(tmp_path / "data", table)
    split = TASKS[task][2](arguments_of(task, folder))
    assert split.images == ROWS
    found, weights = train(task, tmp_path / "streamed", split)
    keys: dict[str, Any] = {"image_size": 96, "augmentation": "none", "seed": 42, "on_bad_image": "fail"}
    source = PictureStream(split, **keys, shuffle_buffer_size=1000)
    source.draw = lambda image, rng: {}  # type: ignore[method-assign]
    order = [row["row"] for row in islice(source, ROWS)]
    assert sorted(order) == list(range(ROWS)) != order
    loaded, expected = train(task, tmp_path / "loaded", table.select(order), train_sampling_strategy="sequential")
    assert len(found) == 2 * ROWS // BATCH
    assert found == pytest.approx(loaded, rel=1e-6, abs=1e-6)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-6)


RUN: dict[str, Any] = {
    "model_name_or_path": "tiny",
    "image_size": 48,
    "streaming": True,
    "shuffle_buffer_size": 4,
    "augmentation": "blip",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "hidden_dropout_prob": 0.1,
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 6,
    "logging_steps": 1,
    "report_to": "none",
    "dataloader_num_workers": 2,
    "use_cpu": True,
}


def write_recipe(task: str, folder: Path, output_dir: Path, **keys: Any) -> Path:
    own = {"queue_size": 10} if task == "retrieval" else {"group_questions": True}
    path = output_dir.with_suffix(".json")
    path.write_text(
        json.dumps({"task": task, "dataset_name": str(folder), "output_dir": str(output_dir), **RUN, **own, **keys})
    )
    return path


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_a_killed_run_goes_on_bit_for_bit_within_a_pass(task: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", rows_of(task), parts=3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main([str(write_recipe(task, folder, whole))])
    recipe = write_recipe(task, folder, killed)
    process = start_module("blip_recipe.finetune", recipe, log=tmp_path / "log", alone=True)
    end = time.monotonic() + 120
    while not list(killed.glob("checkpoint-[24]")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    steps = [int(path.name.split("-")[1]) for path in killed.glob("checkpoint-*")]
    assert steps
    assert max(steps) < RUN["max_steps"], (tmp_path / "log").read_text()
    main([str(recipe)])
    for name in ("model.safetensors", "checkpoint-6/model.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    if task == "retrieval":
        one, other = (load_file(run / "checkpoint-6" / "momentum.safetensors") for run in (whole, killed))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert losses(whole) == losses(killed)
    assert len(losses(whole)) == RUN["max_steps"]
    for run in (whole, killed):
        assert "| epochs, steps | 2, 6 |" in (run / "README.md").read_text()


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_two_processes_read_each_row_of_a_pass_once(task: str, tmp_path: Path) -> None:
    table = rows_of(task)
    folder = write_shards(tmp_path / "data", table, parts=4)
    run = tmp_path / "run"
    keys = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    recipe = write_recipe(task, folder, run, **keys, dataloader_num_workers=0)
    run_checked("blip_recipe.finetune", recipe, processes=2)
    texts = sum(map(len, table["answers" if task == "vqa" else "captions"]))
    card = (run / "README.md").read_text()
    assert f"| {ROWS} | {texts} |" in card
    assert "| epochs, steps | 1, 3 |" in card


def test_questions_are_held_out_by_their_pictures_as_without_streaming(tmp_path: Path) -> None:
    table = rows_of("vqa")
    folder = write_shards(tmp_path / "data", table, parts=2)
    shares: dict[str, Any] = {"validation_fraction": 0.4, "test_fraction": 0.3, "split_seed": 1}
    streamed = load_splits(arguments_of("vqa", folder, **shares), load_questions, open_questions)
    whole = load_splits(VqaDataArguments(dataset_name=str(folder), **shares), load_questions)
    for role in ("eval", "test"):
        assert streamed[role].to_list() == whole[role].to_list()
    source = open_questions(arguments_of("vqa", folder, **shares))
    trained = [image.texts["question_id"] for shard in range(2) for image in source.read(shard)]
    assert trained == whole["train"]["question_id"][:]
    pictures = [set(rows["image_id"]) for rows in whole.values()]
    assert len(set.union(*pictures)) == sum(map(len, pictures))


def answering(folder: Path, **keys: Any) -> PictureStream:
    """The stream of questions that a trainer reads."""
    args = VqaTrainingArguments("unused", use_cpu=True, augmentation="none", shuffle_buffer_size=100, **keys)
    processor = build_tiny_answerer(["a"])[1]
    found = build_dataset(open_questions(arguments_of("vqa", folder)), args, processor, training=True)
    assert isinstance(found, PictureStream)
    return found


@pytest.mark.parametrize("ids", [True, False])
def test_questions_about_an_image_stay_together_if_they_are_grouped(ids: bool, tmp_path: Path) -> None:
    table = rows_of("vqa")
    # The rows of an image need not be adjacent.
    rows = [each for first in range(4) for each in range(first, ROWS, 4)]
    scattered = table.select(rows) if ids else table.select(rows).remove_columns("image_id")
    folder = write_shards(tmp_path / "data", scattered)
    images = len(set(table["image_id"]))
    for grouped in (True, False):
        items = list(islice(answering(folder, group_questions=grouped), ROWS))
        found = [image for image, _ in groupby(items, lambda item: item["image_key"])]
        assert len(set(found)) == images
        assert (len(found) == images) is grouped
    weights = {item["question"]: item["answer_weight"] for item in items}
    assert set(weights.values()) == {0.5, 1.5}


SOURCES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "answer": ({"question": "What is <image> it?", "answer": "a cat"}, ["a cat"]),
    "structs": ({"question": "What is it?", "answers": [{"answer": "a cat"}, {"answer": "cat"}]}, ["a cat", "cat"]),
    "numbered": ({"query": "What is it?", "answer_1": "a cat", "answer_2": "cat"}, ["a cat", "cat"]),
    "number": ({"question": "What is it?", "label": 2}, ["2"]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_answers_are_read_as_without_streaming(source: str, tmp_path: Path) -> None:
    texts, answers = SOURCES[source]
    table = Dataset.from_list([{**texts, "image": rows_of("vqa")[0]["image"]}])
    folder = write_shards(tmp_path / "data", table)
    item = next(iter(answering(folder)))
    loaded = load_questions(VqaDataArguments(dataset_name=str(folder)), "train")[0]
    assert item["answers"] == loaded["answers"] == answers
    assert item["question"] == "what is it?"


def broken(table: Dataset, column: str, value: Any) -> Dataset:
    cells: list[Any] = table[column][:]
    cells[3] = value
    feature = Value("string") if isinstance(value, str) else table.features[column]
    return table.remove_columns(column).add_column(column, cells, feature=feature)


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("question", " ", "shard 0, row 3 cannot be used: it has no question"),
        ("answers", [], "shard 0, row 3 cannot be used: it has no answer"),
        ("answer_weight", -1.0, "row 3: the weight of the answers is -1.0"),
        ("image_id", None, "row 3, has no 'image_id'"),
    ],
)
def test_a_question_that_cannot_be_used_ends_the_stream(column: str, value: Any, fault: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", broken(rows_of("vqa"), column, value))
    *_, end = islice(answering(folder), ROWS)
    assert fault in end["progress"].fault


@pytest.mark.parametrize(
    ("task", "keys", "message"),
    [
        ("vqa", {"answer_list": "train", "eval_split": "train"}, "answer_list is 'train' and the training questions"),
        ("retrieval", {"image_cache": "true"}, "image_cache and streaming are both given"),
        ("vqa", {"max_steps": -1}, "max_steps is missing"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(task: str, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", rows_of(task))
    (folder / "README.md").unlink()
    with pytest.raises(RecipeError, match=message):
        main([str(write_recipe(task, folder, tmp_path / "run", **keys))])
    assert not (tmp_path / "run").exists()


def test_without_the_number_of_images_soft_targets_grow_over_the_whole_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_shards(tmp_path / "data", rows_of("retrieval"))
    (folder / "README.md").unlink()
    alphas: list[float] = []

    class Recording(RetrievalTrainer):
        def with_momentum(self, inputs: Any) -> dict[str, Any]:
            found = super().with_momentum(inputs)
            alphas.append(found["alpha"])
            return found

    TASKS["unknown"] = (Recording, build_tiny_retriever, open_stream)
    train("unknown", tmp_path / "run", open_stream(arguments_of("retrieval", folder)), max_steps=4, alpha=0.4)
    del TASKS["unknown"]
    assert alphas == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert "alpha rises over all 4 steps" in caplog.text


def test_pairs_with_the_same_captions_are_known_in_every_process() -> None:
    captions: Sequence[str] = ["a red circle", "a blue cross"]
    # blake2b of 8 bytes over the captions with a zero byte between them, shifted by one bit.
    assert captions_id(captions) == captions_id(list(captions)) != captions_id(["a red circle\na blue cross"])
