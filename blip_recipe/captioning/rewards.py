"""The reward of sampled captions: CIDEr-D and BLEU-4 against the references of training images, the end included.

As in the code that self-critical training is known by (`array_to_str` in `captioning/utils/rewards.py` of
ruotianluo/self-critical.pytorch), the end token is a word of the n-grams, in candidates and references alike: a caption
that stops after "a man with a" has n-grams that no reference has, and one that never stops lacks those that all have.
Without it CIDEr-D pays for such endings.

Captions are cut by the plain tokenizer of `metrics/`, without Java: it agrees with PTB's on nearly all captions, and on
all that BLIP's lower-case word pieces make, but for rare numbers and abbreviations. Validation keeps the full scorer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from blip_recipe.metrics.bleu import Bleu, bleu_from_statistics, sentence_statistics
from blip_recipe.metrics.cider import Cider, ReferenceVectors, ngrams_of_image
from blip_recipe.metrics.ngrams import count_ngrams
from blip_recipe.metrics.plain_tokenizer import tokenize_without_java

END = "[SEP]"
"""The end of a caption as a word: tokenized words are lower-case, so that no caption has it within."""

REPEATED_N = 4

BAD_ENDINGS = frozenset(["a", "an", "the", "with", "in", "on", "of", "at", "to", "for", "this", "that", "his", "her"])
"""Words that no caption ends with (`bad_endings` in `captioning/utils/misc.py` of ruotianluo/self-critical.pytorch)."""


class TrainingCider(Cider):
    """CIDEr-D with the document frequencies of a whole training set, which are counted once.

    The vectors of an image are made when it is scored: kept for all of COCO they would take gigabytes.

    Args:
        references: The tokenized references of each image.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        frequencies: Counter[tuple[str, ...]] = Counter()
        for captions in references:
            frequencies.update(ngrams_of_image([count_ngrams(caption.split()) for caption in captions]))
        self.log_images = math.log(len(references))
        # An n-gram of one image weighs what an unknown one does, and most are of one image.
        self.weights = {ngram: self.log_images - math.log(count) for ngram, count in frequencies.items() if count > 1}

    def score_image(self, captions: Sequence[str], references: Sequence[str]) -> list[float]:
        """CIDEr-D of each of the tokenized `captions` of an image with the tokenized `references`."""
        counted = [count_ngrams(reference.split()) for reference in references]
        weights = {ngram: self.weights.get(ngram, self.log_images) for ngram in ngrams_of_image(counted)}
        image = ReferenceVectors(counted, weights)
        return [self._score_image(caption.split(), image) for caption in captions]


class CaptionReward:
    """Rewards captions of the images of a training set.

    Args:
        references: The references of each image, as they are written.
        cider_weight, bleu_weight: What a CIDEr-D of 1 (100 in papers) and a BLEU-4 of 1 are worth.
    """

    def __init__(self, references: Sequence[Sequence[str]], cider_weight: float, bleu_weight: float) -> None:
        self.references = [
            [f"{caption} {END}" for caption in tokenize_without_java(captions)] for captions in references
        ]
        self.cider = TrainingCider(self.references)
        self.cider_weight, self.bleu_weight = cider_weight, bleu_weight

    def score(self, row: int, captions: Sequence[str], ended: Sequence[bool]) -> list[float]:
        """The reward of each caption of the image in `row`; `ended` says which end by themselves."""
        references = self.references[row]
        candidates = [
            f"{words} {END}" if end else words
            for words, end in zip(tokenize_without_java(captions), ended, strict=True)
        ]
        ciders = self.cider.score_image(candidates, references)
        bleus = bleu_4(candidates, references) if self.bleu_weight else [0.0] * len(candidates)
        return [self.cider_weight * cider + self.bleu_weight * bleu for cider, bleu in zip(ciders, bleus, strict=True)]


def bleu_4(captions: Sequence[str], references: Sequence[str]) -> list[float]:
    """BLEU-4 of each caption alone against the references of its image; all tokenized."""
    image = Bleu([references])
    lengths, max_counts = image.lengths[0], image.max_counts[0]
    return [bleu_from_statistics(sentence_statistics(caption.split(), lengths, max_counts))[3] for caption in captions]


@dataclass(frozen=True)
class CaptionStatistics:
    """What a training for CIDEr is known to spoil in captions.

    Attributes:
        caption_length: Words a caption.
        distinct_words: Different words, as a share of all words: falls when everything is called the same.
        repeated_ngrams: Share of a caption's 4-grams that it had before (seq-rep-4 of Welleck et al., 2020,
            arXiv 1908.04319).
        bad_endings: Share of captions that end within a phrase, such as in "a man with a".
    """

    caption_length: float
    distinct_words: float
    repeated_ngrams: float
    bad_endings: float


def caption_statistics(captions: Sequence[str]) -> CaptionStatistics:
    """The habits of `captions`, as they are written; at least one is needed."""
    words = [caption.split() for caption in tokenize_without_java(captions)]
    total = sum(map(len, words))
    return CaptionStatistics(
        caption_length=total / len(words),
        distinct_words=len({word for each in words for word in each}) / max(1, total),
        repeated_ngrams=math.fsum(map(repeated_share, words)) / len(words),
        bad_endings=sum(bool(each) and each[-1] in BAD_ENDINGS for each in words) / len(words),
    )


def repeated_share(words: list[str]) -> float:
    """The share of 4-grams that stood in `words` before."""
    counts = count_ngrams(words)[REPEATED_N - 1]
    return 1 - len(counts) / counts.total() if counts else 0.0
