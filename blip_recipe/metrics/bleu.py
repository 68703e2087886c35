"""BLEU-1 to BLEU-4 (Papineni et al., 2002, https://aclanthology.org/P02-1040) as in the COCO caption tools.

Differences from the paper: on a tie, the closest reference length is the shorter one, and tiny constants are added to
avoid division by zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from blip_recipe.metrics.ngram_index import Integers, Matches, NgramIndex, References, sums_by
from blip_recipe.metrics.ngrams import MAX_N, Ngram, count_ngrams
from blip_recipe.metrics.scores import Values
from blip_recipe.metrics.statistics import Numbers, Statistics

# `bleu_scorer.py` of pycocoevalcap, `compute_score`: they keep precisions and length ratio from dividing by zero.
SMALL, TINY = 1e-9, 1e-15


class Bleu:
    """BLEU against fixed references.

    Args:
        index: The n-grams of the references of each image.
    """

    def __init__(self, index: NgramIndex) -> None:
        self.index = index

    def score(self, captions: Sequence[str]) -> Values:
        """Compute BLEU-1 to BLEU-4 of the tokenized `captions`, one per image."""
        rows = self._statistics(captions)
        names = tuple(f"bleu_{n + 1}" for n in range(MAX_N))
        columns = [list(column) for column in zip(*map(bleu_from_statistics, rows.tolist()), strict=True)]
        corpus = dict(zip(names, bleu_from_statistics(rows.sum(0).tolist()), strict=True))
        known = Statistics(names, rows.astype(float), bleu_of_sums)
        return Values(corpus, dict(zip(names, columns, strict=True)), (known,))

    def _statistics(self, captions: Sequence[str]) -> Integers:
        """The `sentence_statistics` of all captions `(images, 10)`."""
        index = self.index
        words, matches = index.find(captions)
        distances = np.abs(index.words.lengths - words.lengths[index.image_of])
        # On a tie, the shorter reference is the closest one.
        order = np.lexsort((index.words.lengths, distances, index.image_of))
        closest = index.words.lengths[order[index.first_reference]]
        correct = [
            sums_by(each.found.texts, clipped_counts(each, references), index.images).astype(np.int64)
            for each, references in zip(matches, index.by_length, strict=True)
        ]
        possible = [np.maximum(0, words.lengths - n) for n in range(MAX_N)]
        return np.column_stack([words.lengths, closest, *correct, *possible])


def clipped_counts(matches: Matches, references: References) -> Integers:
    """How often each n-gram of a caption occurs in it, but at most as often as in a reference of its image."""
    counts = np.zeros_like(matches.pairs)
    is_known = matches.pairs >= 0
    counts[is_known] = np.minimum(matches.found.counts[is_known], references.max_counts[matches.pairs[is_known]])
    return counts


class ReferenceCounts:
    """The n-grams of the tokenized references of one image.

    Attributes:
        lengths: The number of words of each reference.
        max_counts: How often each n-gram occurs in the reference that has it most often.
    """

    def __init__(self, references: Sequence[str]) -> None:
        words = [reference.split() for reference in references]
        self.lengths = [len(each) for each in words]
        self.max_counts: dict[Ngram, int] = {}
        for each in words:
            for counts in count_ngrams(each):
                for ngram, count in counts.items():
                    if count > self.max_counts.get(ngram, 0):
                        self.max_counts[ngram] = count


def sentence_statistics(words: list[str], image: ReferenceCounts) -> list[int]:
    """Return the caption length, the closest reference length, and for each n the clipped matches and the n-grams."""
    length, known = len(words), image.max_counts
    closest = min((abs(each - length), each) for each in image.lengths)[1]
    correct = [
        sum(min(count, known.get(ngram, 0)) for ngram, count in counts.items()) for counts in count_ngrams(words)
    ]
    return [length, closest, *correct, *(max(0, length - n) for n in range(MAX_N))]


def bleu_from_statistics(statistics: Sequence[int]) -> list[float]:
    """Compute BLEU-1 to BLEU-4: the geometric mean of the precisions times the brevity penalty."""
    length, closest, *counts = statistics
    ratio = (length + TINY) / (closest + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, values = 1.0, []
    for n in range(MAX_N):
        product *= (counts[n] + TINY) / (counts[MAX_N + n] + SMALL)
        values.append(product ** (1 / (n + 1)) * brevity)
    return values


def bleu_of_sums(sums: Numbers) -> Numbers:
    """Compute BLEU-1 to BLEU-4 `(..., 4)` of many sets by `bleu_from_statistics`, from their sums `(..., 10)`."""
    ratio = (sums[..., :1] + TINY) / (sums[..., 1:2] + SMALL)
    # The ratio is 0 for a set of empty captions only, whose precisions are 0.
    brevity = np.exp(np.minimum(0, 1 - 1 / np.maximum(ratio, TINY)))
    precisions = (sums[..., 2 : 2 + MAX_N] + TINY) / (sums[..., 2 + MAX_N :] + SMALL)
    return precisions.cumprod(-1) ** (1 / np.arange(1, MAX_N + 1)) * brevity
