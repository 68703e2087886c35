"""Names of the metrics, and classes for their values."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.statistics import Statistics, mean_statistics

logger = logging.getLogger(__name__)

ImageId = int | str

Value = TypeVar("Value")

ScoreTokenizer = Literal["ptb", "char"]
"""How texts are cut into words for scoring: as the COCO tools do (`ptb`), or, in scripts that write no spaces between
words, into characters first (`char`)."""

WORD_METRICS: tuple[str, ...] = ("bleu", "meteor", "rouge_l", "cider", "spice", "exact_match")
"""Metrics that compare the words of a caption with those of its references."""

PICTURE_METRICS: tuple[str, ...] = ("clip_score", "ref_clip_score", "itm_score", "self_retrieval")
"""Metrics that a model computes from the pictures."""

METRICS: tuple[str, ...] = (*WORD_METRICS, *PICTURE_METRICS, "diversity", "chair")

SELF_RANKS = (1, 5, 10)
"""The ranks of self-retrieval recall."""

SCORE_NAMES: dict[str, tuple[str, ...]] = {
    "bleu": ("bleu_1", "bleu_2", "bleu_3", "bleu_4"),
    "self_retrieval": tuple(f"self_recall_{rank}" for rank in SELF_RANKS),
    "diversity": ("distinct_1", "distinct_2", "vocabulary", "unique", "caption_length"),
    "chair": ("chair_i", "chair_s"),
}
"""The score names of each metric that does not use its own name."""

LOWER_IS_BETTER = ("loss", *SCORE_NAMES["chair"])
"""Scores that are better when they are lower."""


MAKERS = {
    **dict.fromkeys(("clip_score", "ref_clip_score", "self_retrieval"), "ClipScorer.load()"),
    "itm_score": "MatcherScorer.load('Salesforce/blip-itm-base-coco')",
    "chair": "Chair.read(['instances_val2014.json'], 'synonyms.txt')",
}
"""How to make a scorer of each metric that needs one."""


@dataclass
class Scores:
    """Scores as fractions (papers write a CIDEr of 1.333 as 133.3).

    Attributes:
        corpus: Scores of the whole set by name: `bleu_1` to `bleu_4`, `meteor`, `rouge_l`, `cider`, `spice`,
            `exact_match`, and those of `SCORE_NAMES`. With groups also those of each group: `cider_in_domain`.
        per_image: Scores of each image with the same names, by image id, in the order of the predictions. Scores of
            `diversity` are of the whole set only.
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


@dataclass(frozen=True)
class ScoredSet:
    """The captions of a set of images, as a `SetScorer` gets them; all lists have the order of `image_ids`.

    Attributes:
        image_ids: The images.
        captions: Their captions, as written.
        words: The same, tokenized.
        references: The references of each image, as written.
        reference_words: The same, tokenized.
        pictures: The picture of each image: a path, a URL, an encoded file or an opened picture. It is read when it is
            needed. None if there are no pictures.
    """

    image_ids: Sequence[ImageId]
    captions: Sequence[str]
    words: Sequence[str]
    references: Sequence[Sequence[str]]
    reference_words: Sequence[Sequence[str]]
    pictures: Mapping[ImageId, Any] | None = None

    def of_rows(self, rows: Sequence[int]) -> ScoredSet:
        """A part of the images."""
        lists = ("image_ids", "captions", "words", "references", "reference_words")
        parts: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in lists}
        return replace(self, **parts)


class SetScorer(Protocol):
    """Computes metrics that need more than words: pictures and a model, objects, or training captions.

    Attributes:
        metrics: The names of the metrics that it computes.
    """

    @property
    def metrics(self) -> Sequence[str]: ...

    def score(self, metric: str, scored: ScoredSet) -> Values:
        """Compute one of `metrics`."""
        ...


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


def check_scorers(metrics: Sequence[str], scorers: Mapping[str, SetScorer]) -> None:
    """Raise a `RecipeError` if a metric needs a scorer that was not passed."""
    for name in metrics:
        if name in MAKERS and name not in scorers:
            raise RecipeError(
                f"metrics names {name!r}, but no scorer computes it: pass one, as in score_captions(captions, "
                f"references, [{name!r}], scorers=[{MAKERS[name]}])."
            )


def check_pictures(
    metrics: Sequence[str], pictures: Mapping[ImageId, Any] | None, image_ids: Sequence[ImageId]
) -> None:
    """Raise a `RecipeError` if a metric needs pictures, and some are missing."""
    needing = [name for name in metrics if name in PICTURE_METRICS]
    if not needing:
        return
    if pictures is None:
        raise RecipeError(
            f"metrics names {needing[0]!r}, which looks at the pictures, but there are none: pass `images`, a "
            "dictionary by image, as in score_captions(captions, references, images={7: 'photos/7.jpg'}, …)."
        )
    if missing := [image_id for image_id in image_ids if image_id not in pictures]:
        raise RecipeError(
            f"metrics names {needing[0]!r}, but there is no picture of {name_images(missing)}: expected one for each "
            "image with a caption."
        )


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
