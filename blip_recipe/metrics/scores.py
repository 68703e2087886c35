"""Names of the metrics, and classes for their values."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.statistics import Statistics, mean_statistics

logger = logging.getLogger(__name__)

ImageId = int | str

Value = TypeVar("Value")

ScoreTokenizer = Literal["ptb", "char"]
"""How texts are cut into words for scoring: as the COCO tools do (`ptb`), or, in scripts that write no spaces between
words, into characters first (`char`)."""

METRICS: tuple[str, ...] = ("bleu", "meteor", "rouge_l", "cider", "spice", "exact_match")


@dataclass
class Scores:
    """Scores as fractions (papers write a CIDEr of 1.333 as 133.3).

    Attributes:
        corpus: Scores of the whole set by name: `bleu_1` to `bleu_4`, `meteor`, `rouge_l`, `cider`, `spice`,
            `exact_match`. With groups also those of each group: `cider_in_domain`.
        per_image: Scores of each image with the same names, by image id, in the order of the predictions.
        intervals: 95% intervals of `corpus` by name (lower and upper end); empty without resamples.
        statistics: What intervals and tests of the whole set are computed from, a row per image in the order of the
            references.
    """

    corpus: dict[str, float]
    per_image: dict[ImageId, dict[str, float]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    statistics: list[Statistics] = field(default_factory=list, repr=False, compare=False)

    def records(
        self, predictions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]
    ) -> list[dict[str, Any]]:
        """The lines of `predictions.jsonl`: one per image, with its caption, references and scores."""
        return [
            {
                "image_id": image_id,
                "caption": caption,
                "references": references[image_id],
                "scores": self.per_image[image_id],
            }
            for image_id, caption in predictions.items()
        ]


class Values(NamedTuple):
    """The values of one scorer by score name: for the corpus, and for each image in order.

    `statistics` are needed for intervals and tests. A score without them has neither.
    """

    corpus: dict[str, float]
    per_image: dict[str, list[float]]
    statistics: tuple[Statistics, ...] = ()


def mean_of_images(name: str, values: list[float], *, is_share: bool = False) -> Values:
    """Build the values of a metric whose corpus value is the mean over images, or the share of right images."""
    return Values(
        {name: sum(values) / len(values)}, {name: values}, (mean_statistics(name, values, is_share=is_share),)
    )


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise a `RecipeError` if `metrics` is a string, or contains an unknown name."""
    if isinstance(metrics, str):
        raise RecipeError(f"metrics is {metrics!r}: expected a list of names, such as {metrics.split()}.")
    for name in metrics:
        if name not in METRICS:
            raise RecipeError(f"metrics names {name!r}, which does not exist; known are {', '.join(METRICS)}.")


def check_tokenizer(tokenizer: str) -> None:
    """Raise a `RecipeError` if there is no such `ScoreTokenizer`."""
    known = get_args(ScoreTokenizer)
    if tokenizer not in known:
        raise RecipeError(f"The tokenizer of scores is {tokenizer!r}: expected one of {', '.join(known)}.")


def check_mappings(predictions: object, references: object) -> None:
    """Raise a `RecipeError` if captions or references are no dictionaries by image."""
    for name, values in (("predictions", predictions), ("references", references)):
        if not isinstance(values, Mapping):
            raise RecipeError(
                f"{name} is a {type(values).__name__}: expected a dictionary by image, as in "
                "score_captions({7: 'a dog'}, {7: ['a dog runs', 'a brown dog']}). "
                f"For captions in order: dict(enumerate({name}))."
            )


def check_same_images(predictions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> None:
    """Raise a `RecipeError` that names images with a caption but no reference, or the other way round."""
    check_mappings(predictions, references)
    if not references:
        raise RecipeError("there are no images to score: expected at least one caption with its references.")
    missing = [image_id for image_id in references if image_id not in predictions]
    unknown = [image_id for image_id in predictions if image_id not in references]
    bare = [image_id for image_id, captions in references.items() if not captions]
    for fault, images in (
        ("there is no caption for", missing),
        ("there is a caption but no list of references for", unknown),
        ("there is no reference for", bare),
    ):
        if images:
            raise RecipeError(f"{fault} {name_images(images)}: expected one caption for each image with references.")


def check_texts(predictions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> None:
    """Raise a `RecipeError` if a caption is not a string, or references are not a list of strings."""
    for image_id, caption in predictions.items():
        known = references[image_id]
        if isinstance(known, str) or not all(isinstance(text, str) for text in (caption, *known)):
            raise RecipeError(
                f"image {image_id!r} has the caption {caption!r} and the references {known!r}: expected a text and "
                "a list of texts."
            )


def name_images(image_ids: Sequence[ImageId]) -> str:
    """Name images in an error message: `image 7`, or `12 images (7, 9, …)` with the first ten."""
    if len(image_ids) == 1:
        return f"image {image_ids[0]!r}"
    shown = ", ".join(repr(image_id) for image_id in image_ids[:10])
    return f"{len(image_ids)} images ({shown}{', …' if len(image_ids) > 10 else ''})"


def match_ids(values: Mapping[ImageId, Value], image_ids: Mapping[ImageId, object]) -> dict[ImageId, Value]:
    """Give `values` the ids of `image_ids` where one side has numbers and the other has them as text.

    "42" and "000042" are 42. Ids of the same type are compared as they are.
    """
    numbers: dict[int | None, ImageId] = {
        number: image_id for image_id in image_ids if (number := number_of(image_id)) is not None
    }
    types = {type(image_id) for image_id in image_ids}, {type(image_id) for image_id in values}
    if types not in (({int}, {str}), ({str}, {int})) or len(numbers) < len(image_ids):
        return dict(values)
    found: dict[ImageId, ImageId] = {image_id: numbers.get(number_of(image_id), image_id) for image_id in values}
    changed = [image_id for image_id in values if type(found[image_id]) is not type(image_id)]
    if not changed or len(set(found.values())) < len(found):
        return dict(values)
    logger.warning(
        "Image ids are text on one side and numbers on the other, such as %s and %s: they are compared as numbers.",
        repr(changed[0]),
        repr(found[changed[0]]),
    )
    return {found[image_id]: value for image_id, value in values.items()}


def number_of(image_id: ImageId) -> int | None:
    """The number that an id is, or that its text is."""
    if isinstance(image_id, int):
        return image_id
    return int(image_id) if re.fullmatch(r"[0-9]{1,18}", image_id.strip()) else None
