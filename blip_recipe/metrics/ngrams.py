"""Count n-grams of one to four words, for BLEU and CIDEr."""

from __future__ import annotations

from collections import Counter

MAX_N = 4

Ngram = tuple[str, ...]


def count_ngrams(words: list[str]) -> tuple[Counter[Ngram], ...]:
    """Count the n-grams of `words`: one counter each for n = 1, 2, 3, 4."""
    later = [words[n:] for n in range(MAX_N)]
    return tuple(Counter(zip(*later[: n + 1], strict=False)) for n in range(MAX_N))
