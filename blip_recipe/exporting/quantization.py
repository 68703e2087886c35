"""Choose the fastest 8-bit form that keeps the scores of a split."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from blip_recipe.data.arguments import CaptionDataArguments, DataArguments
from blip_recipe.data.load import load_split
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.scorer import score_captions
from blip_recipe.runtime.answerer import ExportedAnswerer
from blip_recipe.runtime.captioner import ExportedCaptioner
from blip_recipe.runtime.matcher import ExportedMatcher
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.data import is_answered, load_questions
from blip_recipe.vqa.metrics import is_exact_match, vqa_accuracy

METRICS = ("bleu", "cider", "exact_match")
"""The metrics that a quantised captioner must keep."""

MAX_LOSS = 0.01
"""The part of each score that a quantised model may lose."""

BATCH = 8
"""Pictures in a batch."""

RERANKED = 16
"""Number of most similar texts of a picture that a matcher compares with it."""

FORMS = ("int8", "int8_weights")
"""The ways to quantise, the usual one first: weights and the inputs of layers, or weights alone."""


@dataclass(frozen=True)
class Measured:
    """What a form of a model gives on a split: its scores, and seconds for each row."""

    scores: dict[str, float]
    seconds: float


class Scoring(NamedTuple):
    """How models of a task are scored: the data arguments, the function that loads a split, and the one that scores."""

    arguments: type[DataArguments]
    load: Callable[..., Dataset]
    measure: Callable[[Path, Dataset], Measured]


def load_scored_split(
    task: str, recipe: Mapping[str, Any], dataset_name: str | None, split: str, max_samples: int | None
) -> Dataset:
    """Load the split that quantised models are scored on: of a data set, or of that of the model's recipe.

    Raises:
        RecipeError: There is none.
    """
    scoring = SCORINGS[task]
    recorded = {field.name: recipe[field.name] for field in fields(scoring.arguments) if field.name in recipe}
    if dataset_name:
        recorded = {"dataset_name": dataset_name}
    if not recorded.get("dataset_name"):
        raise RecipeError(
            "--eval_split is given, but the model has no recipe.json with a data set: add --dataset_name."
        )
    return scoring.load(scoring.arguments(**recorded), split, max_samples=max_samples)


def measure_captions(folder: Path, rows: Dataset) -> Measured:
    """Caption the pictures of a split with an exported captioner, and score the captions."""
    captioner = ExportedCaptioner.load(folder)
    captions: list[str] = []
    seconds = 0.0
    for start in range(0, len(rows), BATCH):
        pixels = [captioner.folder.read_picture(image) for image in rows[start : start + BATCH]["image"]]
        begin = time.perf_counter()
        captions += [found[0] for found in captioner.caption_pixels(pixels)[0]]
        seconds += time.perf_counter() - begin
    references: dict[int | str, Any] = {
        number: row["captions"] for number, row in enumerate(rows.select_columns("captions"))
    }
    found = score_captions(dict(enumerate(captions)), references, METRICS).corpus
    return Measured(found, seconds / len(captions))


def measure_answers(folder: Path, rows: Dataset) -> Measured:
    """Answer the questions of a split with an exported answerer, and score the answers.

    Raises:
        RecipeError: The split has no answers.
    """
    if not is_answered(rows):
        raise RecipeError("--eval_split is given, but the split has no answers: name another one.")
    answerer = ExportedAnswerer.load(folder)
    of_pictures: dict[Any, list[int]] = {}
    for number, image_id in enumerate(rows["image_id"]):
        of_pictures.setdefault(image_id, []).append(number)
    scores: dict[str, list[float]] = {"vqa_accuracy": [], "exact_match": []}
    seconds = 0.0
    for numbers in of_pictures.values():
        own = rows[numbers]
        pixels = answerer.folder.read_picture(own["image"][0])
        begin = time.perf_counter()
        token_ids = answerer.generate(answerer.encode(pixels, [own["question"]]))
        seconds += time.perf_counter() - begin
        for ids, answers in zip(token_ids, own["answers"], strict=True):
            answer = answerer.folder.texts.decode(ids[0])
            scores["vqa_accuracy"].append(vqa_accuracy(answer, answers))
            scores["exact_match"].append(is_exact_match(answer, answers))
    return Measured({name: float(np.mean(values)) for name, values in scores.items()}, seconds / len(rows))


def measure_matches(folder: Path, rows: Dataset) -> Measured:
    """Find the texts of the pictures of a split with an exported matcher, and the pictures of the texts.

    The scores are the recalls at 1 by cosine, and of texts also by the probability among the `RERANKED` most similar.
    """
    matcher = ExportedMatcher.load(folder)
    texts = [text for own in rows["captions"] for text in own]
    owners = np.array([number for number, own in enumerate(rows["captions"]) for _ in own])
    begin = time.perf_counter()
    features = matcher.encode_texts(texts).features
    seconds = time.perf_counter() - begin
    cosines, likeliest = [], []
    for row in rows.select_columns("image"):
        pixels = matcher.folder.read_picture(row["image"])
        begin = time.perf_counter()
        cosines.append(features @ matcher.image_features(pixels)[0])
        closest = np.argsort(-cosines[-1], kind="stable")[:RERANKED]
        matches = matcher.match([pixels], [[texts[each] for each in closest]])[0]
        seconds += time.perf_counter() - begin
        likeliest.append(closest[int(np.argmax(matches))])
    found, pictures = np.stack(cosines), np.arange(len(rows))
    scores = {
        "text_recall_1": owners[found.argmax(axis=1)] == pictures,
        "image_recall_1": found.argmax(axis=0) == owners,
        "reranked_text_recall_1": owners[likeliest] == pictures,
    }
    return Measured({name: float(right.mean()) for name, right in scores.items()}, seconds / len(rows))


SCORINGS = {
    "captioning": Scoring(CaptionDataArguments, load_split, measure_captions),
    "vqa": Scoring(VqaDataArguments, load_questions, measure_answers),
    "retrieval": Scoring(CaptionDataArguments, load_split, measure_matches),
}
"""The scoring of each task."""


def choose(plain: Measured, forms: Mapping[str, Measured]) -> str:
    """The fastest form whose scores are all within `MAX_LOSS` of those in float32.

    Raises:
        RecipeError: There is none.
    """
    kept = [
        name
        for name, form in forms.items()
        if all(form.scores[metric] >= value * (1 - MAX_LOSS) for metric, value in plain.scores.items())
    ]
    if not kept:
        found = "; ".join(f"{name}: {describe_scores(form)}" for name, form in {"fp32": plain, **forms}.items())
        raise RecipeError(
            f"No 8-bit form keeps all scores within {MAX_LOSS:.0%}: {found}. Nothing was kept. Leave --dtype out."
        )
    return min(kept, key=lambda name: forms[name].seconds)


def describe_scores(measured: Measured) -> str:
    """The scores and the speed, as text."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in measured.scores.items())
    return f"{scores}, {1 / measured.seconds:.1f} rows a second"
