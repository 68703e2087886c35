"""CIDEr-D (Vedantam et al., 2015, https://arxiv.org/abs/1411.5726) as in the COCO caption tools.

Document frequencies come from the references of the scored set, so the score of an image depends on the set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from blip_recipe.metrics.ngrams import MAX_N, Ngram, count_ngrams
from blip_recipe.metrics.scores import Values, mean_of_images

# From `cider.py` of pycocoevalcap: standard deviation of the length penalty in bigrams, and the paper's factor of 10.
SIGMA, SCALE = 6.0, 10.0


class Cider:
    """CIDEr-D against fixed references. Their weighted n-grams are computed once.

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
        """Compute CIDEr-D of the tokenized `captions`, one per image."""
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
