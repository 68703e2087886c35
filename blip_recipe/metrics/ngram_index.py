"""Count the n-grams of all references of a set at once, and find those of captions among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blip_recipe.metrics.ngrams import MAX_N
from blip_recipe.metrics.statistics import Numbers

Integers = NDArray[np.int64]


class Words(NamedTuple):
    """The words of many texts, one after the other.

    Attributes:
        ids: The number of each word in the vocabulary.
        texts: The number of the text that each word belongs to.
        left: The number of words from each word to the end of its text.
        lengths: The number of words of each text.
    """

    ids: Integers
    texts: Integers
    left: Integers
    lengths: Integers


class Occurrences(NamedTuple):
    """The different n-grams of each text.

    Attributes:
        ngrams: Their numbers.
        texts: The number of the text that each belongs to.
        counts: How often each occurs in its text.
        places: The place of each in the row of words, where it occurs first.
    """

    ngrams: Integers
    texts: Integers
    counts: Integers
    places: Integers


class References(NamedTuple):
    """The n-grams of one length in the references.

    Attributes:
        keys: What tells each n-gram from others, in ascending order: the number of its first words, and its last word.
        frequencies: The number of images with each n-gram.
        found: The n-grams of each reference, by n-gram, then by reference.
        pairs: N-grams and images that have them, as one number each, in ascending order.
        starts: Where the occurrences of each pair begin in `found`, and the end of the last one.
        max_counts: How often the n-gram of each pair occurs in the reference of the image that has it most often.
    """

    keys: Integers
    frequencies: Integers
    found: Occurrences
    pairs: Integers
    starts: Integers
    max_counts: Integers


class Matches(NamedTuple):
    """The n-grams of one length in captions.

    Attributes:
        found: The n-grams of each caption, in the order of its words. Numbers from `len(References.keys)` on belong to
            n-grams that no reference has.
        pairs: The place of n-gram and image in `References.pairs`; -1: no reference of the image has the n-gram.
    """

    found: Occurrences
    pairs: Integers


class NgramIndex:
    """The n-grams of one to four words of a set's references.

    Args:
        references: The tokenized references of each image.

    Attributes:
        images: The number of images.
        image_of: The image of each reference.
        words: The words of all references.
        by_length: Their n-grams for n = 1, 2, 3, 4.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self.images = len(references)
        counts = np.fromiter(map(len, references), np.int64, self.images)
        self.image_of = np.repeat(np.arange(self.images), counts)
        self.first_reference = np.cumsum(counts) - counts
        self._vocabulary: dict[str, int] = {}
        self.words = join_words([text for texts in references for text in texts], self._vocabulary)
        self.by_length = list(self._index())
        self._last: tuple[Sequence[str], tuple[Words, list[Matches]]] | None = None

    def find(self, captions: Sequence[str]) -> tuple[Words, list[Matches]]:
        """The words of the tokenized `captions`, one per image, and their n-grams for n = 1, 2, 3, 4."""
        if self._last is None or self._last[0] != tuple(captions):
            vocabulary = dict(self._vocabulary)
            words = join_words(captions, vocabulary)
            self._last = tuple(captions), (words, list(self._match(words, len(vocabulary))))
        return self._last[1]

    def _index(self) -> Iterator[References]:
        words, size = self.words, len(self._vocabulary)
        before = np.zeros_like(words.ids)
        for n in range(MAX_N):
            places = np.flatnonzero(words.left > n)
            keys = before[places] * size + words.ids[places + n]
            order = np.argsort(keys, kind="stable")
            keys, places = keys[order], places[order]
            is_new = run_starts(keys)
            ngrams = np.cumsum(is_new) - 1
            before[places] = ngrams
            found = count_runs(ngrams, words.texts[places], places)
            pairs = found.ngrams * self.images + self.image_of[found.texts]
            starts = np.flatnonzero(run_starts(pairs))
            yield References(
                keys[is_new],
                np.bincount(found.ngrams[starts], minlength=int(is_new.sum())),
                found,
                pairs[starts],
                np.append(starts, len(pairs)),
                np.maximum.reduceat(found.counts, starts) if len(starts) else starts,
            )

    def _match(self, words: Words, size: int) -> Iterator[Matches]:
        known_words, known_before = len(self._vocabulary), 1
        before = np.zeros_like(words.ids)
        for n, references in enumerate(self.by_length):
            places = np.flatnonzero(words.left > n)
            first, last = before[places], words.ids[places + n]
            rows = search(references.keys, first * known_words + last)
            rows[(first >= known_before) | (last >= known_words)] = -1
            unknown = rows < 0
            others = np.unique(first[unknown] * size + last[unknown], return_inverse=True)[1]
            rows[unknown] = len(references.keys) + others.reshape(-1)
            before[places], known_before = rows, len(references.keys)
            order = np.lexsort((rows, words.texts[places]))
            found = count_runs(rows[order], words.texts[places][order], places[order])
            found = Occurrences(*(column[np.argsort(found.places)] for column in found))
            pairs = search(references.pairs, found.ngrams * self.images + found.texts)
            yield Matches(found, pairs)


def join_words(texts: Sequence[str], vocabulary: dict[str, int]) -> Words:
    """Number the words of `texts`; new words are added to the vocabulary."""
    split = [text.split() for text in texts]
    lengths = np.fromiter(map(len, split), np.int64, len(split))
    words = list(itertools.chain.from_iterable(split))
    for word in dict.fromkeys(words):
        vocabulary.setdefault(word, len(vocabulary))
    ids = np.fromiter(map(vocabulary.__getitem__, words), np.int64, len(words))
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))
    return Words(ids, np.repeat(np.arange(len(split)), lengths), left, lengths)


def run_starts(values: Integers) -> NDArray[np.bool_]:
    """Whether each value differs from the one before it."""
    starts = np.ones(len(values), bool)
    starts[1:] = values[1:] != values[:-1]
    return starts


def count_runs(ngrams: Integers, texts: Integers, places: Integers) -> Occurrences:
    """Count occurrences of the same n-gram in the same text, which stand together, first places first."""
    starts = np.flatnonzero(run_starts(ngrams) | run_starts(texts))
    counts = np.diff(np.append(starts, len(ngrams)))
    return Occurrences(ngrams[starts], texts[starts], counts, places[starts])


def search(ascending: Integers, values: Integers) -> Integers:
    """The place of each value among different ascending ones; -1 for those that are missing."""
    if not len(ascending):
        return np.full(len(values), -1)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.where(ascending[places] == values, places, -1)


def sums_by(owners: Integers, values: Numbers | Integers, count: int) -> Numbers:
    """The sum of the values of each owner, added in their order."""
    sums: Numbers = np.bincount(owners, values, count).astype(float, copy=False)  # whole numbers without any values
    return sums


def expand_ranges(starts: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """All numbers of ranges, one range after the other, and the range of each."""
    ranges = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(ranges)) - np.repeat(np.cumsum(counts) - counts, counts)
    return starts[ranges] + within, ranges
