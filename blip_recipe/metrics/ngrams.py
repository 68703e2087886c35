"""The n-grams of one to four words that BLEU and CIDEr count."""

from __future__ import annotations

from collections import Counter

MAX_N = 4

Ngram = tuple[str, ...]


def count_ngrams(words: list[str]) -> tuple[Counter[Ngram], ...]:
    """How often each n-gram occurs in `words`: one counter each for n = 1, 2, 3, 4."""
    later = [words[n:] for n in range(MAX_N)]
    return tuple(Counter(zip(*later[: n + 1], strict=False)) for n in range(MAX_N))
