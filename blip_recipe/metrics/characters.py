"""Scripts that write no spaces between words: find their characters, and set these apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from blip_recipe.metrics.scores import ScoreTokenizer

_WITH_MARKS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Tibetan, Myanmar and Khmer, whose vowel signs and tones are characters of their own."""

_UNSPACED = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Chinese characters and Japanese kana. Korean has spaces between words."""

_MARKS = "".join(
    chr(code)
    for first, last in re.findall("(.)-(.)", _WITH_MARKS + "\u302a-\u302f\u3099-\u309a")
    for code in range(ord(first), ord(last) + 1)
    if unicodedata.category(chr(code)).startswith("M")
)
_CHARACTER = re.compile(f"[{_UNSPACED}{_WITH_MARKS}][{_MARKS}]*")
_PUNCTUATION = re.compile(
    "[\u3000-\u3004\u3008-\u3029\u3030-\u303f\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
"""Punctuation of these scripts, which the PTB tokenizer would keep as words."""


def has_unspaced(text: str) -> bool:
    """Whether a text has a character of a script without spaces between words."""
    return not text.isascii() and _CHARACTER.search(text) is not None


def cut_unspaced(text: str) -> str:
    """Put spaces around each character of a script without spaces between words; its marks stay with it."""
    return text if text.isascii() else _CHARACTER.sub(r" \g<0> ", text)


def cut_captions(captions: Sequence[str], tokenizer: ScoreTokenizer) -> list[str]:
    """Prepare captions for the tokenizer of scores; only `char` changes them."""
    return [cut_for_scoring(caption) for caption in captions] if tokenizer == "char" else list(captions)


def cut_for_scoring(text: str) -> str:
    """Make words of the characters of scripts without spaces, and drop the punctuation of these scripts.

    Other words stay whole: `"红色的 SUV。"` becomes `"红 色 的 SUV"`.
    """
    return " ".join(cut_unspaced(text if text.isascii() else _PUNCTUATION.sub(" ", text)).split())


def share_unspaced(texts: Iterable[str]) -> float:
    """The share of `texts` that have a character of a script without spaces between words."""
    found = [has_unspaced(text) for text in texts]
    return sum(found) / max(1, len(found))
