"""CIDEr-D (Vedantam et al., 2015, https://arxiv.org/abs/1411.5726) as the COCO caption tools compute it.

The document frequencies are those of the references that are scored, so the score of one image depends on the set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from blip_recipe.metrics.ngrams import MAX_N, Ngram, count_ngrams
from blip_recipe.metrics.scores import Values, mean_of_images

# `cider.py` of pycocoevalcap: standard deviation of the length penalty, in bigrams; the factor is the paper's.
SIGMA, SCALE = 6.0, 10.0


class Cider:
    """CIDEr-D against fixed references, whose weighted n-grams are kept.

    Args:
        references: The tokenized references of each image.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counted = [[count_ngrams(caption.split()) for caption in captions] for captions in references]
        self.log_images = math.log(len(references))
        frequencies = Counter(ngram for captions in counted for ngram in ngrams_of_image(captions))
        self.weights = {ngram: self.log_images - math.log(count) for ngram, count in frequencies.items()}
        self.images = [ReferenceVectors(captions, self.weights) for captions in counted]

    def score(self, captions: Sequence[str]) -> Values:
        """CIDEr-D of the tokenized `captions`, one an image."""
        values = [self._score_image(words.split(), image) for words, image in zip(captions, self.images, strict=True)]
        return mean_of_images("cider", values)

    def _score_image(self, words: list[str], image: ReferenceVectors) -> float:
        penalties = [math.exp(-((bigrams(words) - each) ** 2) / (2 * SIGMA**2)) for each in image.bigrams]
        total = 0.0
        for counts, inverse_norms in zip(count_ngrams(words), image.inverse_norms, strict=True):
            products, norm = [0.0] * len(penalties), 0.0
            for ngram, count in counts.items():
                weight = self.weights.get(ngram, self.log_images)
                norm += (count * weight) ** 2
                for reference, reference_count in image.occurrences.get(ngram, ()):
                    products[reference] += weight**2 * min(count, reference_count) * reference_count
            if norm:
                similarity = sum(map(math.prod, zip(products, inverse_norms, penalties, strict=True)))
                total += similarity / math.sqrt(norm)
        return SCALE * total / MAX_N / len(penalties)


class ReferenceVectors:
    """The references of one image, turned about: for each n-gram the references that have it.

    Attributes:
        occurrences: For each n-gram, pairs of reference number and count.
        inverse_norms: For n = 1, 2, 3, 4 and each reference, one over the length of its weighted vector (0 for none).
        bigrams: Number of bigrams of each reference.
    """

    __slots__ = ("bigrams", "inverse_norms", "occurrences")

    def __init__(self, captions: list[tuple[Counter[Ngram], ...]], weights: Mapping[Ngram, float]) -> None:
        self.occurrences: dict[Ngram, tuple[tuple[int, int], ...]] = {}
        self.inverse_norms: list[list[float]] = [[] for _ in range(MAX_N)]
        self.bigrams = [counts[1].total() for counts in captions]
        for reference, by_length in enumerate(captions):
            once = ((reference, 1),)  # shared: nearly all n-grams occur once
            for counts, norms in zip(by_length, self.inverse_norms, strict=True):
                norm = 0.0
                for ngram, count in counts.items():
                    norm += (count * weights[ngram]) ** 2
                    here = once if count == 1 else ((reference, count),)
                    known = self.occurrences.get(ngram)
                    self.occurrences[ngram] = known + here if known else here
                norms.append(1 / math.sqrt(norm) if norm else 0.0)


def ngrams_of_image(captions: list[tuple[Counter[Ngram], ...]]) -> set[Ngram]:
    """The different n-grams of an image's references."""
    return {ngram for by_length in captions for counts in by_length for ngram in counts}


def bigrams(words: list[str]) -> int:
    """The length that CIDEr-D's penalty compares: the tools count bigrams, not words."""
    return max(0, len(words) - 1)
