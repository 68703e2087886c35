"""Answers and matches of the runner are those of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exports import run_in_torch
from vqa_models import QUESTIONS, save_answerer

from blip_recipe.models.matching import Matcher
from blip_recipe.vqa.pipeline import answer_pipeline


@pytest.mark.parametrize("decoding", [{"num_beams": 1}, {"num_beams": 3, "max_length": 10, "min_length": 1}])
def test_answers_to_questions_of_several_lengths(shared: Path, tmp_path: Path, decoding: dict[str, Any]) -> None:
    folder = shared / "data" / "parity_vqa"
    _, exported = run_in_torch(folder / "model", tmp_path, given=decoding)
    pipeline = answer_pipeline(folder / "model", device="cpu", **decoding)
    rows = [json.loads(line) for line in (folder / "images" / "test" / "metadata.jsonl").read_text().splitlines()]
    rows = rows[:24]
    for name in {row["file_name"] for row in rows}:
        asked = [row["question"] for row in rows if row["file_name"] == name]
        # The same pixels, since resizing differs: these pictures have the model's size.
        assert exported.ask(folder / "images" / "test" / name, asked) == pipeline.ask(
            folder / "images" / "test" / name, asked
        )


@pytest.mark.parametrize(("smoothing", "rank_by"), [(0.1, "smoothed_loss"), (0.0, "likelihood")])
def test_ranked_answers(shared: Path, tmp_path: Path, smoothing: float, rank_by: str) -> None:
    folder = shared / "data" / "parity_vqa"
    answers = (folder / "answers.txt").read_text().split("\n")[:200]
    _, exported = run_in_torch(folder / "model", tmp_path, answers=answers, rank_top_k=100, label_smoothing=smoothing)
    pipeline = answer_pipeline(folder / "model", device="cpu", answers=answers, rank_top_k=100, rank_by=rank_by)
    picture = sorted((folder / "images" / "test").glob("*.png"))[0]
    asked = ["what is it?", "how many people are there in the picture, and where are they?"]
    for found, expected in zip(exported.ask(picture, asked, 5), pipeline.ask(picture, asked, 5), strict=True):
        assert [each["answer"] for each in found] == [each["answer"] for each in expected]
        for name in ("loss", "log_likelihood"):
            assert [each[name] for each in found] == pytest.approx([each[name] for each in expected], abs=1e-4)


def test_an_untrained_answerer(tmp_path: Path) -> None:
    model = save_answerer(tmp_path / "model")
    _, exported = run_in_torch(model, tmp_path / "exported")
    pipeline = answer_pipeline(model, device="cpu")
    picture = Path(__file__).parents[2] / "docs" / "figures" / "explain.png"
    found = exported.ask(picture, QUESTIONS)
    assert found == pipeline.ask(picture, QUESTIONS)
    assert len({each[0]["answer"] for each in found}) > 1


def test_matches_are_those_of_the_original_and_cosines_those_of_torch(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "parity_retrieval"
    _, exported = run_in_torch(folder / "model", tmp_path)
    matcher = Matcher.load(str(folder / "model"), device="cpu")
    pairs = json.loads((folder / "expected.json").read_text())["matches"]
    texts = [each["text"] for each in pairs]
    for number, each in enumerate(pairs):
        picture = folder / "images" / "test" / each["file_name"]
        probabilities, cosines = exported.compare(exported.preprocess(picture), exported.encode_texts(texts))
        expected = matcher.compare(matcher.preprocess(picture), matcher.encode_texts(texts))
        assert probabilities == pytest.approx(expected[0], abs=1e-4)
        assert cosines == pytest.approx(expected[1], abs=1e-4)
        assert probabilities[number] == pytest.approx(each["probability"], abs=1e-4)
        assert cosines[number] == pytest.approx(each["cosine"], abs=1e-4)
        assert exported.match([exported.preprocess(picture)], [texts[:3]])[0] == pytest.approx(
            expected[0][:3], abs=1e-4
        )
