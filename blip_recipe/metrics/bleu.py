"""BLEU-1 to BLEU-4 (Papineni et al., 2002, https://aclanthology.org/P02-1040) as in the COCO caption tools.

Differences from the paper: on a tie, the closest reference length is the shorter one, and tiny constants are added to
avoid division by zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from blip_recipe.metrics.ngrams import MAX_N, Ngram, count_ngrams
from blip_recipe.metrics.scores import Values
from blip_recipe.metrics.statistics import Numbers, Statistics

# `bleu_scorer.py` of pycocoevalcap, `compute_score`: they keep precisions and length ratio from dividing by zero.
SMALL, TINY = 1e-9, 1e-15


class Bleu:
    """BLEU against fixed references. Their n-gram counts are computed once.

    Args:
        references: The tokenized references of each image.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self.lengths: list[list[int]] = []
        self.max_counts: list[dict[Ngram, int]] = []
        for captions in references:
            words = [caption.split() for caption in captions]
            self.lengths.append([len(each) for each in words])
            max_counts: dict[Ngram, int] = {}
            for each in words:
                for counts in count_ngrams(each):
                    for ngram, count in counts.items():
                        if count > max_counts.get(ngram, 0):
                            max_counts[ngram] = count
            self.max_counts.append(max_counts)

    def score(self, captions: Sequence[str]) -> Values:
        """Compute BLEU-1 to BLEU-4 of the tokenized `captions`, one per image."""
        totals = [0] * (2 * MAX_N + 2)
        rows, kept = [], []
        for caption, lengths, max_counts in zip(captions, self.lengths, self.max_counts, strict=True):
            statistics = sentence_statistics(caption.split(), lengths, max_counts)
            kept.append(statistics)
            totals = [total + each for total, each in zip(totals, statistics, strict=True)]
            rows.append(bleu_from_statistics(statistics))
        names = tuple(f"bleu_{n + 1}" for n in range(MAX_N))
        columns = [list(column) for column in zip(*rows, strict=True)]
        corpus = dict(zip(names, bleu_from_statistics(totals), strict=True))
        known = Statistics(names, np.array(kept, float), bleu_of_sums)
        return Values(corpus, dict(zip(names, columns, strict=True)), (known,))


def sentence_statistics(words: list[str], lengths: list[int], max_counts: dict[Ngram, int]) -> list[int]:
    """Return the caption length, the closest reference length, and for each n the clipped matches and the n-grams."""
    length = len(words)
    closest = min((abs(each - length), each) for each in lengths)[1]
    correct = [
        sum(min(count, max_counts.get(ngram, 0)) for ngram, count in counts.items()) for counts in count_ngrams(words)
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
