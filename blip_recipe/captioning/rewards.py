"""Compute the rewards of self-critical training: CIDEr-D and BLEU-4 of sampled captions, end token included.

Rewards by the picture (`PictureRater`) see the caption without its end token.

As in the usual implementation (`array_to_str` in `captioning/utils/rewards.py` of ruotianluo/self-critical.pytorch),
the end token is a word of the n-grams of candidates and references. A caption that stops after "a man with a" then has
n-grams that no reference has, and one that never stops lacks n-grams that all references have. Without the end token,
CIDEr-D rewards such endings.

Captions are tokenized as in evaluations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blip_recipe.metrics.bleu import ReferenceCounts, bleu_from_statistics, sentence_statistics
from blip_recipe.metrics.characters import cut_captions
from blip_recipe.metrics.cider import ReferenceVectors, ngrams_of_image, score_against
from blip_recipe.metrics.ngrams import count_ngrams
from blip_recipe.metrics.scores import ScoreTokenizer
from blip_recipe.metrics.tokenizer import clean_caption, tokenize

END = "[SEP]"
"""The end of a caption as a word; it never occurs within a caption, because tokenized words are lower-case."""

REPEATED_N = 4

BAD_ENDINGS = frozenset(["a", "an", "the", "with", "in", "on", "of", "at", "to", "for", "this", "that", "his", "her"])
"""Words that end no full caption (`bad_endings` in `captioning/utils/misc.py` of ruotianluo/self-critical.pytorch)."""


class PictureRater(Protocol):
    """Scores captions by their pictures (`ClipScorer`, `MatcherScorer`)."""

    def rate(self, pictures: Sequence[Any], captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The score of each caption of each picture."""
        ...


class TrainingCider:
    """CIDEr-D with the document frequencies of the training set, which are counted once.

    The vectors of an image are computed when it is scored: for all of COCO they would take gigabytes.

    Args:
        references: The tokenized references of each image.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        frequencies: Counter[tuple[str, ...]] = Counter()
        for captions in references:
            frequencies.update(ngrams_of_image([count_ngrams(caption.split()) for caption in captions]))
        self.log_images = math.log(len(references))
        # Most n-grams occur in one image only. They have the same weight as unknown ones and are not stored.
        self.weights = {ngram: self.log_images - math.log(count) for ngram, count in frequencies.items() if count > 1}

    def score_image(self, captions: Sequence[str], references: Sequence[str]) -> list[float]:
        """CIDEr-D of each tokenized caption of an image against its tokenized references."""
        counted = [count_ngrams(reference.split()) for reference in references]
        weights = {ngram: self.weights.get(ngram, self.log_images) for ngram in ngrams_of_image(counted)}
        image = ReferenceVectors(counted, weights)
        return [score_against(caption.split(), image, self.weights, self.log_images) for caption in captions]


class CaptionReward:
    """Compute rewards of captions of training images.

    Args:
        references: The references of each image, not tokenized.
        cider_weight, bleu_weight: Weights of CIDEr-D and BLEU-4, both as fractions (a CIDEr-D of 1 is 100 in papers).
        tokenizer: How captions are cut into words, as for `CaptionScorer`.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        cider_weight: float,
        bleu_weight: float,
        tokenizer: ScoreTokenizer = "ptb",
    ) -> None:
        self.tokenizer = tokenizer
        self.references = [[f"{caption} {END}" for caption in self._tokenize(captions)] for captions in references]
        self.cider = TrainingCider(self.references)
        self.cider_weight, self.bleu_weight = cider_weight, bleu_weight

    def _tokenize(self, captions: Sequence[str]) -> list[str]:
        return tokenize(cut_captions(list(map(clean_caption, captions)), self.tokenizer))

    def score(self, row: int, captions: Sequence[str], ended: Sequence[bool]) -> list[float]:
        """The reward of each caption of the image in `row`; `ended` tells which captions have an end token."""
        references = self.references[row]
        candidates = [
            f"{words} {END}" if end else words for words, end in zip(self._tokenize(captions), ended, strict=True)
        ]
        ciders = self.cider.score_image(candidates, references)
        bleus = bleu_4(candidates, references) if self.bleu_weight else [0.0] * len(candidates)
        return [self.cider_weight * cider + self.bleu_weight * bleu for cider, bleu in zip(ciders, bleus, strict=True)]


def bleu_4(captions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Sentence BLEU-4 of each tokenized caption against the tokenized references of its image."""
    image = ReferenceCounts(references)
    return [bleu_from_statistics(sentence_statistics(caption.split(), image))[3] for caption in captions]


@dataclass(frozen=True)
class CaptionStatistics:
    """Properties of captions that training for CIDEr is known to degrade.

    Attributes:
        caption_length: Mean number of words per caption.
        distinct_words: Number of different words divided by the number of words.
        repeated_ngrams: Mean share of a caption's 4-grams that are repetitions (seq-rep-4 of Welleck et al., 2020,
            arXiv 1908.04319).
        bad_endings: Share of captions that end within a phrase, such as "a man with a".
    """

    caption_length: float
    distinct_words: float
    repeated_ngrams: float
    bad_endings: float


def caption_statistics(captions: Sequence[str]) -> CaptionStatistics:
    """The statistics of one or more captions, not tokenized."""
    words = [caption.split() for caption in tokenize(list(map(clean_caption, captions)))]
    total = sum(map(len, words))
    return CaptionStatistics(
        caption_length=total / len(words),
        distinct_words=len({word for each in words for word in each}) / max(1, total),
        repeated_ngrams=math.fsum(map(repeated_share, words)) / len(words),
        bad_endings=sum(bool(each) and each[-1] in BAD_ENDINGS for each in words) / len(words),
    )


def repeated_share(words: list[str]) -> float:
    """The share of 4-grams of `words` that are repetitions."""
    counts = count_ngrams(words)[REPEATED_N - 1]
    return 1 - len(counts) / counts.total() if counts else 0.0
