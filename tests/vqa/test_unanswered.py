"""Test questions without annotations are answered and not scored; weights of answers count in the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import draw_pictures
from commands import run_checked, run_module
from vqa_models import QUESTIONS, WORDS, save_answerer

from blip_recipe.errors import RecipeError
from blip_recipe.evaluate import main
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.collator import AnswerCollator
from blip_recipe.vqa.data import QuestionDataset, is_answered, load_questions, question_rows
from blip_recipe.vqa.tiny import build_tiny_answerer

QUIET = ("--dataloader_num_workers", "0", "--use_cpu", "true", "--allow_shared_images", "true")


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_answerer(tmp_path_factory.mktemp("answerer"), task="vqa", generation_num_beams=1)


@pytest.fixture
def vqav2(tmp_path: Path) -> Path:
    """Files as VQAv2's: questions of `train2014` with annotations, and of `test2015` without."""
    folder = tmp_path / "vqa"
    for subset, answered in (("train2014", True), ("test2015", False)):
        pictures = draw_pictures(folder / subset, 2)
        for number, path in enumerate(pictures):
            path.rename(path.with_name(f"COCO_{subset}_{number:012}.jpg"))
        questions = [
            {"image_id": number % 2, "question_id": 10 * number, "question": question}
            for number, question in enumerate(QUESTIONS)
        ]
        content = {"data_subtype": subset, "questions": questions}
        (folder / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps(content))
        if answered:
            annotations = [{"question_id": each["question_id"], "answers": ["red", "cat"]} for each in questions]
            file = folder / f"v2_mscoco_{subset}_annotations.json"
            file.write_text(json.dumps({"annotations": annotations}))
    return folder


def check_results(folder: Path) -> None:
    """Check the form of the server's file."""
    results = json.loads((folder / "vqa_result.json").read_text(encoding="utf-8"))
    assert [each["question_id"] for each in results] == [0, 10, 20, 30]
    assert all(list(each) == ["question_id", "answer"] and isinstance(each["answer"], str) for each in results)


@pytest.mark.parametrize("ranked", [False, True])
def test_evaluate_writes_the_servers_file_and_claims_no_score(
    answerer: Path, vqav2: Path, tmp_path: Path, ranked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "list.json").write_text('["red", "a dog", "two"]')
    options = ["--answer_list", str(tmp_path / "list.json")] if ranked else []
    data = ["--dataset_name", str(vqav2), "--eval_split", "test2015", *QUIET, "--output_dir", str(out)]
    main(["--model", str(answerer), *data, *options])
    assert capsys.readouterr().out == ""
    check_results(out)
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    results = json.loads((out / "vqa_result.json").read_text())
    assert [each["answer"] for each in predictions] == [each["answer"] for each in results]
    assert all(each["scores"] == {} and each["answers"] == [] for each in predictions)
    if ranked:
        assert {each["answer"] for each in results} <= {"red", "a dog", "two"}
    scores = json.loads((out / "all_results.json").read_text())
    assert not {"eval_loss", "eval_vqa_accuracy"} & set(scores)


def test_a_run_answers_its_test_split_and_is_scored_on_its_evaluation_split(vqav2: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"task": "vqa", "model_name_or_path": "tiny", "dataset_name": str(vqav2)}
    recipe |= {"train_split": "train2014", "eval_split": "train2014", "test_split": "test2015", "max_steps": 1}
    recipe |= {"eval_strategy": "epoch", "per_device_train_batch_size": 4, "generation_num_beams": 1}
    path, out = tmp_path / "recipe.json", tmp_path / "out"
    path.write_text(json.dumps(recipe))
    run_checked("blip_recipe.finetune", path, *QUIET, "--output_dir", out)
    check_results(out)
    results = json.loads((out / "all_results.json").read_text())
    assert "eval_vqa_accuracy" in results
    assert "baseline_vqa_accuracy" in results
    assert not [name for name in results if name.startswith("test_")]
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert all(each["answers"] == ["red", "cat"] for each in predictions)
    # Without an evaluation split, too.
    alone = ("--eval_split", "null", "--eval_strategy", "no", "--output_dir", tmp_path / "alone")
    run_checked("blip_recipe.finetune", path, *QUIET, *alone)
    check_results(tmp_path / "alone")
    done = run_module("blip_recipe.finetune", path, *QUIET, "--eval_split", "test2015", "--output_dir", tmp_path / "no")
    assert done.returncode == 2
    assert "The evaluation questions have no answers" in done.stderr
    assert not (tmp_path / "no").exists()


def test_training_questions_need_answers(vqav2: Path) -> None:
    arguments = VqaDataArguments(dataset_name=str(vqav2), train_split="test2015")
    with pytest.raises(RecipeError, match=r"v2_mscoco_test2015_annotations.json, the file of the answers, is missing"):
        load_questions(arguments, "test2015")
    arguments.train_split = "train2014"
    assert is_answered(load_questions(arguments, "train2014"))
    assert not is_answered(load_questions(arguments, "test2015"))


def write_table(folder: Path, **columns: list[Any]) -> VqaDataArguments:
    paths = draw_pictures(folder / "test", 2)
    rows = [
        {"file_name": path.name, "question": question, **{name: values[row] for name, values in columns.items()}}
        for row, (path, question) in enumerate(zip(paths, QUESTIONS[:2], strict=True))
    ]
    (folder / "test" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return VqaDataArguments(dataset_name=str(folder), train_split="train")


def test_a_table_without_a_column_of_answers_can_be_asked(tmp_path: Path) -> None:
    arguments = write_table(tmp_path)
    assert not is_answered(load_questions(arguments, "test"))
    arguments.train_split = "test"
    with pytest.raises(RecipeError, match="has none of the columns answers, answer"):
        load_questions(arguments, "test")


def test_weights_of_a_column_multiply_the_shares(tmp_path: Path) -> None:
    arguments = write_table(tmp_path, answer=["cat", ["red", "two"]], importance=[0.2, 1])
    arguments.answer_weight_column = "importance"
    rows = load_questions(arguments, "test")
    assert rows["answer_weight"][:] == [0.2, 1.0]
    processor = build_tiny_answerer(WORDS)[1]
    kept = question_rows(rows, "rows")
    dataset = QuestionDataset(kept, image_size=96, normalize=True, augmentation="none", seed=0)
    batch = AnswerCollator(processor)(dataset.__getitems__([0, 1]))
    expected = torch.tensor([[0, 0.2, 0.2, 0, 0, 0], [0, 0.5, 0.5, 0, 0.5, 0.5]])
    torch.testing.assert_close(batch["answer_weights"], expected)


def test_a_data_set_of_ones_own_may_have_weights() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    items = [{"image": image, "question": "what?", "answer": "cat", "answer_weight": weight} for weight in (0.2, 1)]
    dataset = QuestionDataset(question_rows(items, "items"), image_size=96, normalize=True, augmentation="none", seed=0)
    assert [dataset[row]["answer_weight"] for row in (0, 1)] == [0.2, 1.0]


@pytest.mark.parametrize("weight", [-1, None, "much"])
def test_a_wrong_weight_is_named(tmp_path: Path, weight: Any) -> None:
    arguments = write_table(tmp_path, answer=["cat", "red"], importance=[weight, weight])
    arguments.answer_weight_column = "importance"
    with pytest.raises(RecipeError, match=r"row 0: the weight of the answers is .*expected a number of at least 0"):
        load_questions(arguments, "test")
