"""A list of answers is ranked as one by one, over whole splits, and can be made of the training questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_checked
from vqa_models import QUESTIONS, WORDS, loud, save_answerer

from blip_recipe.errors import RecipeError
from blip_recipe.evaluate import main
from blip_recipe.vqa import ranking
from blip_recipe.vqa.answer_lists import frequent_answers
from blip_recipe.vqa.arguments import VqaArguments, VqaDataArguments
from blip_recipe.vqa.collator import encode_answers, encode_questions
from blip_recipe.vqa.data import load_questions
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tiny import build_tiny_answerer
from blip_recipe.vqa.trainer import VqaTrainer
from blip_recipe.vqa.training_arguments import VqaTrainingArguments

CANDIDATES = ["red", "red cat", "", "blue", "a blue dog", "two", "yes", "no", "a small red cat"]


@pytest.fixture(scope="module")
def answerer() -> tuple[BlipForAnswering, Any]:
    torch.manual_seed(0)
    model, processor = build_tiny_answerer(WORDS)
    return loud(model).eval(), processor.tokenizer


@torch.no_grad()
def one_by_one(
    model: BlipForAnswering, tokenizer: Any, states: torch.Tensor, smoothing: float
) -> list[tuple[float, float]]:
    """Loss and log-likelihood of each candidate for one unpadded question, by a forward of its own."""
    found = []
    for ids in encode_answers(tokenizer, CANDIDATES):
        answer = ids[ids != tokenizer.pad_token_id]
        logits = model.text_decoder(answer[None], encoder_hidden_states=states[None]).logits[0, :-1]
        options = {"reduction": "sum", "label_smoothing": smoothing}
        loss = torch.nn.functional.cross_entropy(logits, answer[1:], **options)  # type: ignore[arg-type]
        likelihood = -torch.nn.functional.cross_entropy(logits, answer[1:], reduction="sum")
        found.append((loss.item(), likelihood.item()))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("max_row", "max_logits"), [(1024, 2048), (5, 3), (1, 1)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_answers_are_scored_as_one_by_one(
    answerer: tuple[BlipForAnswering, Any],
    monkeypatch: pytest.MonkeyPatch,
    smoothing: float,
    max_row: int,
    max_logits: int,
    attention: str,
) -> None:
    monkeypatch.setattr(ranking, "MAX_ROW", max_row)
    monkeypatch.setattr(ranking, "MAX_LOGITS", max_logits)
    model, tokenizer = answerer
    if attention == "sdpa":
        model = BlipForAnswering(model.config)
        model.load_state_dict(answerer[0].state_dict())
        model = model.eval().use_sdpa()
    questions = encode_questions(tokenizer, QUESTIONS)
    embeds = model.vision_model(torch.randn(len(QUESTIONS), 3, 96, 96)).last_hidden_state
    states = model.encode_questions(embeds, **questions)
    mask = questions["attention_mask"]
    ranked = model.rank(states, mask, encode_answers(tokenizer, CANDIDATES), label_smoothing=smoothing)
    for question, seen in enumerate(mask.sum(1).tolist()):
        alone = one_by_one(model, tokenizer, states[question, :seen], smoothing)
        order = sorted(range(len(CANDIDATES)), key=lambda row: alone[row][0])
        assert ranked.rows[question].tolist() == order
        assert ranked.losses[question].tolist() == pytest.approx([alone[row][0] for row in order], abs=1e-4)
        assert ranked.log_likelihoods[question].tolist() == pytest.approx([alone[row][1] for row in order], abs=1e-4)


def test_an_answer_longer_than_blip_reads_is_refused(answerer: tuple[BlipForAnswering, Any]) -> None:
    with pytest.raises(RecipeError, match="one of 602 tokens, 'red red"):
        encode_answers(answerer[1], ["yes", "red " * 600])


def test_frequent_answers_by_hand() -> None:
    questions = [
        ["two", "2", "two"],  # read as 2
        ["2", "a cat"],  # of equally frequent ones, the first given
        ["The cat.", "a cat", "a cat"],
        ["cat"],
        ["cats"],
        ["the", "the", "cat"],  # read as nothing: left out
        ["a"],
        [],
    ]
    assert frequent_answers(questions, 2) == ["2", "cat"]
    assert frequent_answers(questions, 1) == ["2", "cat", "cats"]
    assert frequent_answers(questions) == []
    assert frequent_answers([["yes", "no"]] * 9 + [["no"]] * 8) == ["yes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answer_list": "missing.txt"}, r"answer_list missing.txt cannot be read"),
        ({"rank_top_k": 0}, "rank_top_k is 0: expected at least 1"),
        ({"answer_min_questions": 0}, "answer_min_questions is 0: expected at least 1"),
        ({"rank_by": "loss"}, "rank_by is 'loss': expected one of smoothed_loss, likelihood"),
    ],
)
def test_wrong_arguments_of_ranking_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        VqaArguments(**arguments)


def test_the_answers_of_the_training_questions_are_ranked_and_saved(tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    options = (
        *("--eval_strategy", "no", "--load_best_model_at_end", "false", "--save_strategy", "no"),
        *("--dataloader_num_workers", "0", "--use_cpu", "true", "--max_steps", "2", "--warmup_steps", "0"),
        *("--max_train_samples", "240", "--max_eval_samples", "30", "--per_device_train_batch_size", "8"),
        *("--answer_list", "train", "--answer_min_questions", "5", "--rank_by", "likelihood"),
    )
    run_checked("blip_recipe.finetune", "recipes/shapes_vqa.json", *options, "--output_dir", run)
    answers = json.loads((run / "answer_list.json").read_text(encoding="utf-8"))
    assert {"yes", "no", "red"} <= set(answers)
    predictions = read_lines(run / "predictions.jsonl")
    assert {each["answer"] for each in predictions} <= set(answers)
    card = (run / "README.md").read_text(encoding="utf-8")
    assert f"ranked by likelihood, 128 of {len(answers)} in full" in card
    # The finished model is scored in the same way, without its training questions.
    main(
        [
            *("--model", str(run), "--dataset_name", "shapes", "--eval_split", "test", "--max_eval_samples", "30"),
            *("--dataloader_num_workers", "0", "--metrics", "vqa_accuracy", "exact_match", "--output_dir", str(again)),
        ]
    )
    assert read_lines(again / "predictions.jsonl") == predictions
    scores = [json.loads((folder / "all_results.json").read_text(encoding="utf-8")) for folder in (run, again)]
    assert scores[1]["eval_vqa_accuracy"] == pytest.approx(scores[0]["test_vqa_accuracy"])
    assert scores[1]["rank_by"] == scores[0]["rank_by"] == "likelihood"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_evaluate_refuses_ranking_without_a_list(tmp_path: Path) -> None:
    model = save_answerer(tmp_path / "model", task="vqa")
    data = ["--dataset_name", "shapes", "--eval_split", "test", "--max_eval_samples", "3", "--output_dir", "out"]
    with pytest.raises(RecipeError, match="rank_top_k is 5, but answer_list is null"):
        main(["--model", str(model), *data, "--rank_top_k", "5"])


def test_evaluate_makes_the_list_of_the_training_questions(tmp_path: Path) -> None:
    model = save_answerer(tmp_path / "model", task="vqa")
    data = ["--dataset_name", "shapes", "--eval_split", "test", "--max_eval_samples", "6", "--max_train_samples", "60"]
    options = ["--answer_list", "train", "--answer_min_questions", "2", "--output_dir", str(tmp_path / "out")]
    main(["--model", str(model), *data, *options, "--dataloader_num_workers", "0"])
    questions = load_questions(VqaDataArguments(dataset_name="shapes"), "train", max_samples=60)
    answers = frequent_answers(questions["answers"][:], 2)
    assert {each["answer"] for each in read_lines(tmp_path / "out" / "predictions.jsonl")} <= set(answers)


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (None, "there are no training questions: name a file of answers"),
        (6, "no answer is the most frequent one of 9 of the 6 training questions: set answer_min_questions"),
    ],
)
def test_a_list_that_cannot_be_made_is_refused(tmp_path: Path, trained: int | None, message: str) -> None:
    rows = load_questions(VqaDataArguments(dataset_name="shapes"), "validation", max_samples=6)
    args = VqaTrainingArguments(str(tmp_path / "out"), answer_list="train", use_cpu=True, report_to=[])
    model = str(save_answerer(tmp_path / "model"))
    with pytest.raises(RecipeError, match=message):
        VqaTrainer(model, args, None if trained is None else rows, rows)
