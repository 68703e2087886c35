"""Read captions from strings, lists and structs, and clean them as the original BLIP does."""

from __future__ import annotations

import ast
import hashlib
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT_KEYS = ("raw", "caption", "text")
"""Fields of a struct that may hold the caption, beside tokens or ids."""

MAX_WORDS = 30
"""Maximum words of a training caption (`coco_karpathy_train` in the original's `data/coco_karpathy_dataset.py`)."""

MAX_CHARACTERS = 100_000
"""Maximum length of a caption. A longer one is probably a whole file in the wrong column. (Training uses only the first
words of a caption, but scorers and cards use references in full.)"""

MAX_QUESTION_WORDS = 50
"""Maximum words of a question (`pre_question` of the original)."""

_TEXT = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
_QUOTED = re.compile(_TEXT)
_LIST = re.compile(rf"\s*\[\s*({_TEXT}(?:\s*,?\s*{_TEXT})*)\s*,?\s*\]\s*")
"""A list of quoted texts. NumPy writes no commas."""

_REMOVED = re.compile(r'[.!"()*#:;~]')


def normalize_caption(text: str, max_words: int | None = MAX_WORDS) -> str:
    """Clean a caption as the original BLIP does for training.

    Lower the case, replace some punctuation by spaces, merge runs of spaces, and keep the first `max_words` words. With
    None, keep all.

    Source: `pre_caption` in `data/utils.py` of the original repository.
    """
    return " ".join(clean_caption(text).split()[:max_words])


def clean_caption(text: str) -> str:
    """Clean a caption as `normalize_caption` does, but keep runs of spaces and all words."""
    return _REMOVED.sub(" ", text.lower())


def normalize_question(text: str) -> str:
    """Clean a question as the original does: lower case, less punctuation, at most 50 words.

    Question marks, commas, apostrophes and hyphens are kept. Source: `pre_question` in `data/utils.py` of the original
    repository.
    """
    return " ".join(_REMOVED.sub("", text.lower()).split()[:MAX_QUESTION_WORDS])


def read_captions(cell: Any) -> list[str]:
    """Read the captions of one cell, stripped and without empty ones.

    Args:
        cell: A string with one caption per line, or a list of strings as Python, NumPy or JSON write it; a struct with
            `raw`, `caption` or `text`; a list of strings or structs with one caption each (line breaks included); or
            None.

    Raises:
        TypeError: The cell has another type.
    """
    found = (read_list(cell) or cell.split("\n")) if isinstance(cell, str) else flatten_texts(cell, TEXT_KEYS)
    return [caption.strip() for caption in found if caption.strip()]


def read_list(cell: str) -> list[str] | None:
    """The texts of a list that was written into a cell (`"['a dog', 'a cat']"`); None if it is no list of texts."""
    if not (match := _LIST.fullmatch(cell)):
        return None
    return [ast.literal_eval(text) for text in _QUOTED.findall(match[1])]


def flatten_texts(cell: Any, keys: Sequence[str], *, numbers: bool = False) -> list[str]:
    """Collect the texts in a cell: a string, a list, a struct with one of `keys`, or any nesting of these.

    Args:
        cell: The cell of a table. None has no texts.
        keys: Fields of structs to read, the preferred one first.
        numbers: Whether to read numbers as texts; NaN is none.

    Raises:
        TypeError: The cell holds another type.
    """
    if cell is None:
        return []
    if isinstance(cell, str):
        return [cell]
    if numbers and isinstance(cell, float):
        # Tables hold whole numbers as floats where cells are missing.
        return [] if math.isnan(cell) else [str(int(cell) if cell.is_integer() else cell)]
    if numbers and isinstance(cell, int) and not isinstance(cell, bool):
        return [str(cell)]
    if isinstance(cell, dict):
        found = [key for key in keys if key in cell]
        if not found:
            raise TypeError(f"a struct of {', '.join(cell)}")
        return flatten_texts(cell[found[0]], keys, numbers=numbers)
    if isinstance(cell, list):
        return [text for item in cell for text in flatten_texts(item, keys, numbers=numbers)]
    raise TypeError(f"a {type(cell).__name__} ({cell!r:.50})")


def validate_captions(captions: Sequence[str]) -> str | None:
    """Return what is wrong with the captions of an image, or None."""
    if not captions:
        return "it has no caption"
    longest = max(map(len, captions))
    if longest > MAX_CHARACTERS:
        return f"it has a caption of {longest:,} characters: expected at most {MAX_CHARACTERS:,}"
    without_words = next((caption for caption in captions if not clean_caption(caption).strip()), None)
    if without_words is not None:
        return f"its caption {without_words!r:.50} has no word, only punctuation that BLIP leaves out"
    return None


def captions_id(captions: Sequence[str]) -> int:
    """A number for all captions of an image, the same in all runs and processes: a hash of 63 bits.

    Images with the same captions cannot be told apart by texts, so they are neither negatives nor errors of each other.
    This matters for drawn scenes, which may differ in details that no caption mentions, not for photographs.
    """
    content = "\0".join(captions).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def join_prompt(prompt: str, caption: str) -> str:
    """Join prompt and caption as the original does (`models/blip.py`)."""
    return f"{prompt.rstrip()} {caption}".strip()
