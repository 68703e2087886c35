"""Losses, gradients and answers equal those of the original code, question by question."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_recipe.evaluate import main
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.data import load_questions
from blip_recipe.vqa.metrics import vqa_accuracy
from blip_recipe.vqa.trainer import VqaTrainer
from blip_recipe.vqa.training_arguments import VqaTrainingArguments

BATCHES = pytest.mark.parametrize("batch_size", [7, 120])
RANKED = pytest.mark.parametrize(
    ("name", "rank_top_k", "rank_by"),
    [
        ("answers_ranked", 128, "smoothed_loss"),
        ("answers_ranked_k16", 16, "smoothed_loss"),
        ("answers_ranked_k4", 4, "smoothed_loss"),
        ("answers_ranked_without_label_smoothing", 128, "likelihood"),
    ],
)

Load = Callable[..., VqaTrainer]


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data" / "parity_vqa"


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def load(folder: Path, expected: dict[str, Any], tmp_path: Path) -> Load:
    """Load the trainer of the model of the original code, with its questions as evaluation split."""
    rows = load_questions(VqaDataArguments(dataset_name=str(folder / "images")), "test")
    places = {question_id: row for row, question_id in enumerate(rows["question_id"][:])}
    questions = rows.select([places[question_id] for question_id in expected["question_ids"]])

    def load_trainer(batch_size: int = 120, **arguments: Any) -> VqaTrainer:
        args = VqaTrainingArguments(
            str(tmp_path / "out"),
            per_device_eval_batch_size=batch_size,
            augmentation="none",
            use_cpu=True,
            report_to=[],
            **arguments,
        )
        return VqaTrainer(str(folder / "model"), args, eval_dataset=questions)

    return load_trainer


def answers_of(trainer: VqaTrainer) -> list[str]:
    """The answers of the last evaluation."""
    return [each["answer"] for each in trainer.predictions]


@BATCHES
def test_the_loss_of_each_question_is_the_originals(load: Load, expected: dict[str, Any], batch_size: int) -> None:
    trainer = load(batch_size, generation_num_beams=1)
    output = trainer.predict(trainer.eval_dataset)
    assert output.metrics["test_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert output.label_ids[1].tolist() == pytest.approx(expected["question_losses"], abs=1e-4)


def test_the_norm_of_all_gradients_is_the_originals(load: Load, expected: dict[str, Any]) -> None:
    trainer = load()
    (batch,) = trainer.get_eval_dataloader()
    trainer.compute_loss(trainer.plain_model, trainer._prepare_inputs(batch)).backward()
    gradients = [weights.grad for weights in trainer.model.parameters() if weights.grad is not None]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-4)


@BATCHES
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"generation_num_beams": 1}, "answers_greedy"),
        ({"generation_num_beams": 3}, "answers_beam_transformers5"),
        ({"generation_num_beams": 3, "generation_early_stopping": "never"}, "answers_beam_original"),
    ],
    ids=["greedy", "beams", "original beams"],
)
def test_generated_answers_are_those_of_single_questions(
    load: Load, expected: dict[str, Any], batch_size: int, arguments: dict[str, Any], name: str
) -> None:
    trainer = load(batch_size, **arguments)
    trainer.evaluate()
    assert answers_of(trainer) == expected[name]
    accuracy = expected[name.replace("answers", "vqa_accuracy")]
    assert accuracy_of(trainer) == pytest.approx(accuracy, abs=1e-12)
    assert answers_of(trainer) != expected["answers_beam_original_in_one_padded_batch"]


def accuracy_of(trainer: VqaTrainer) -> float:
    """The mean accuracy over the questions with ten annotators."""
    answered = zip(answers_of(trainer), trainer.predictions, strict=True)
    scores = [vqa_accuracy(answer, each["answers"]) for answer, each in answered if len(each["answers"]) == 10]
    assert len(scores) == 115
    return sum(scores) / len(scores)


@BATCHES
@RANKED
def test_ranked_answers_are_the_originals(
    folder: Path, load: Load, expected: dict[str, Any], batch_size: int, name: str, rank_top_k: int, rank_by: Any
) -> None:
    trainer = load(batch_size, answer_list=str(folder / "answers.txt"), rank_top_k=rank_top_k, rank_by=rank_by)
    trainer.evaluate()
    assert [each["answer"] for each in trainer.predictions] == expected[name]
    if name == "answers_ranked":
        assert accuracy_of(trainer) == pytest.approx(expected["vqa_accuracy_ranked"], abs=1e-12)


def test_the_command_ranks_as_the_original(folder: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    data = ("--dataset_name", folder / "images", "--eval_split", "test", "--dataloader_num_workers", "0")
    ranked = ("--answer_list", folder / "answers.txt")
    words = ("--task", "vqa", "--model", folder / "model", *data, *ranked, "--output_dir", tmp_path)
    main([*map(str, words)])
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {each["question_id"]: each["answer"] for each in map(json.loads, lines)}
    assert [answers[question_id] for question_id in expected["question_ids"]] == expected["answers_ranked"]
    results = json.loads((tmp_path / "all_results.json").read_text(encoding="utf-8"))
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert (results["rank_by"], results["rank_top_k"]) == ("smoothed_loss", "128")
