"""Choose the fastest 8-bit form that keeps the scores of a split."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.load import load_split
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.scorer import score_captions
from blip_recipe.runtime.captioner import ExportedCaptioner

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

METRICS = ("bleu", "cider", "exact_match")
"""The metrics that a quantised captioner must keep."""

MAX_LOSS = 0.01
"""The part of each score that a quantised model may lose."""

BATCH = 8
"""Pictures in a batch."""


FORMS = ("int8", "int8_weights")
"""The ways to quantise, the usual one first: weights and the inputs of layers, or weights alone."""


@dataclass(frozen=True)
class Measured:
    """What a form of a model gives on a split: its scores, and seconds for each picture."""

    scores: dict[str, float]
    seconds: float


def load_scored_split(
    recipe: Mapping[str, Any], dataset_name: str | None, split: str, max_samples: int | None
) -> Dataset:
    """Load the split that quantised models are scored on: of a data set, or of that of the model's recipe.

    Raises:
        RecipeError: There is none.
    """
    recorded = {field.name: recipe[field.name] for field in fields(CaptionDataArguments) if field.name in recipe}
    if dataset_name:
        recorded = {"dataset_name": dataset_name}
    if not recorded.get("dataset_name"):
        raise RecipeError(
            "--eval_split is given, but the model has no recipe.json with a data set: add --dataset_name."
        )
    return load_split(CaptionDataArguments(**recorded), split, max_samples=max_samples)


def measure(folder: Path, rows: Dataset) -> Measured:
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
    return f"{scores}, {1 / measured.seconds:.1f} pictures a second"
