"""A tokenizer for where there is no Java: equal to PTB's on all but one of 3,000 captions of COCO.

It knows words, numbers, contractions, possessives, hyphens, abbreviations and punctuation of English. It does not know
what PTB's lexer has beyond that: addresses, telephone numbers, fractions, smileys, markup.
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
    """Tokenize `captions` (each of one line): lower case, punctuation dropped, words joined by single spaces."""
    return [
        " ".join(
            word
            for word in (SPELLED.get(token, token) for token in TOKEN.findall(caption.lower()))
            if word not in PUNCTUATION
        )
        for caption in captions
    ]
