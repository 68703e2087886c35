"""CIDEr-D (Vedantam et al., 2015, https://arxiv.org/abs/1411.5726) as in the COCO caption tools.

Document frequencies come from the references of the scored set, so the score of an image depends on the set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from blip_recipe.metrics.ngram_index import (
    Integers,
    Matches,
    NgramIndex,
    References,
    expand_ranges,
    sums_by,
)
from blip_recipe.metrics.ngrams import MAX_N, Ngram, count_ngrams
from blip_recipe.metrics.scores import Values, mean_of_images
from blip_recipe.metrics.statistics import Numbers

# From `cider.py` of pycocoevalcap: standard deviation of the length penalty in bigrams, and the paper's factor of 10.
SIGMA, SCALE = 6.0, 10.0


class Cider:
    """CIDEr-D against fixed references. The norms of their vectors are computed once.

    Args:
        index: The n-grams of the references of each image.
    """

    def __init__(self, index: NgramIndex) -> None:
        self.index = index
        self.log_images = math.log(index.images)
        self.weights = [self._weights(references.frequencies) for references in index.by_length]
        self.inverse_norms = [
            self._inverse_norms(references, weights)
            for references, weights in zip(index.by_length, self.weights, strict=True)
        ]

    def score(self, captions: Sequence[str]) -> Values:
        """Compute CIDEr-D of the tokenized `captions`, one per image."""
        index = self.index
        words, matches = index.find(captions)
        penalties = self._penalties(words.lengths)
        total = np.zeros(index.images)
        for each, references, weights, norms in zip(
            matches, index.by_length, self.weights, self.inverse_norms, strict=True
        ):
            own = weights[np.minimum(each.found.ngrams, len(weights) - 1)]
            norm = sums_by(each.found.texts, (each.found.counts * own) ** 2, index.images)
            products = self._products(each, references, own)
            similarity = sums_by(index.image_of, products * norms * penalties, index.images)
            total += np.divide(similarity, np.sqrt(norm), out=np.zeros(index.images), where=norm > 0)
        counts = np.bincount(index.image_of, minlength=index.images)
        return mean_of_images("cider", (SCALE * total / MAX_N / counts).tolist())

    def _weights(self, frequencies: Integers) -> Numbers:
        """The weight of each n-gram, and last that of n-grams that no reference has."""
        # Python's logarithm: that of numpy differs in the last bit on some machines.
        logs = np.array([0.0, *map(math.log, range(1, self.index.images + 1))])
        return self.log_images - np.append(logs[frequencies], 0.0)

    def _inverse_norms(self, references: References, weights: Numbers) -> Numbers:
        """One over the norm of each reference's vector; 0 for norm 0."""
        found, words = references.found, self.index.words
        # In the order of the words, so that sums are the same for any other references.
        squares = np.zeros(len(words.ids))
        squares[found.places] = (found.counts * weights[found.ngrams]) ** 2
        norms = sums_by(words.texts, squares, len(words.lengths))
        return np.divide(1, np.sqrt(norms), out=np.zeros(len(norms)), where=norms > 0)

    def _penalties(self, lengths: Integers) -> Numbers:
        """The length penalty of each reference and the caption of its image. The tools count bigrams, not words."""
        captions, references = (np.maximum(0, each - 1) for each in (lengths, self.index.words.lengths))
        differences = np.abs(captions[self.index.image_of] - references)
        table, rows = np.unique(differences, return_inverse=True)
        return np.array([length_penalty(each) for each in table.tolist()])[rows.reshape(-1)]

    def _products(self, matches: Matches, references: References, weights: Numbers) -> Numbers:
        """The product of the vectors of each reference and the caption of its image, with clipped counts."""
        is_known = matches.pairs >= 0
        pairs, weights, counts = matches.pairs[is_known], weights[is_known], matches.found.counts[is_known]
        starts = references.starts[pairs]
        places, rows = expand_ranges(starts, references.starts[pairs + 1] - starts)
        known = references.found.counts[places]
        terms = weights[rows] ** 2 * np.minimum(counts[rows], known) * known
        return sums_by(references.found.texts[places], terms, len(self.index.words.lengths))


def length_penalty(difference: int) -> float:
    """The penalty of captions that have this many bigrams more or fewer than a reference."""
    return math.exp(-(difference**2) / (2 * SIGMA**2))


def score_against(
    words: list[str], image: ReferenceVectors, weights: Mapping[Ngram, float], log_images: float
) -> float:
    """CIDEr-D of the words of one caption; n-grams without a weight have the weight `log_images`."""
    penalties = [length_penalty(bigrams(words) - each) for each in image.bigrams]
    total = 0.0
    for counts, inverse_norms in zip(count_ngrams(words), image.inverse_norms, strict=True):
        products, norm = [0.0] * len(penalties), 0.0
        for ngram, count in counts.items():
            weight = weights.get(ngram, log_images)
            norm += (count * weight) ** 2
            for reference, reference_count in image.occurrences.get(ngram, ()):
                products[reference] += weight**2 * min(count, reference_count) * reference_count
        if norm:
            similarity = sum(map(math.prod, zip(products, inverse_norms, penalties, strict=True)))
            total += similarity / math.sqrt(norm)
    return SCALE * total / MAX_N / len(penalties)


class ReferenceVectors:
    """The references of one image as an inverted index.

    Attributes:
        occurrences: For each n-gram, pairs of a reference's index and its count.
        inverse_norms: For n = 1, 2, 3, 4 and each reference, one over the norm of its weighted vector (0 for norm 0).
        bigrams: Number of bigrams in each reference.
    """

    __slots__ = ("bigrams", "inverse_norms", "occurrences")

    def __init__(self, captions: list[tuple[Counter[Ngram], ...]], weights: Mapping[Ngram, float]) -> None:
        self.occurrences: dict[Ngram, tuple[tuple[int, int], ...]] = {}
        self.inverse_norms: list[list[float]] = [[] for _ in range(MAX_N)]
        self.bigrams = [counts[1].total() for counts in captions]
        for reference, by_length in enumerate(captions):
            once = ((reference, 1),)  # shared to save memory: nearly all n-grams occur once
            for counts, norms in zip(by_length, self.inverse_norms, strict=True):
                norm = 0.0
                for ngram, count in counts.items():
                    norm += (count * weights[ngram]) ** 2
                    here = once if count == 1 else ((reference, count),)
                    known = self.occurrences.get(ngram)
                    self.occurrences[ngram] = known + here if known else here
                norms.append(1 / math.sqrt(norm) if norm else 0.0)


def ngrams_of_image(captions: list[tuple[Counter[Ngram], ...]]) -> set[Ngram]:
    """The distinct n-grams of an image's references."""
    return {ngram for by_length in captions for counts in by_length for ngram in counts}


def bigrams(words: list[str]) -> int:
    """The length for CIDEr-D's length penalty: the COCO tools count bigrams, not words."""
    return max(0, len(words) - 1)
