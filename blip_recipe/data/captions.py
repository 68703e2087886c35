"""Captions: read from any shape they are stored in, and cleaned as BLIP's authors clean them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT_KEYS = ("raw", "caption", "text")
"""Fields that hold the caption where it is stored with other facts about it (tokens, ids)."""

MAX_WORDS = 30
"""Longest training caption in words (`coco_karpathy_train` in the original's `data/coco_karpathy_dataset.py`)."""

_REMOVED = re.compile(r'[.!"()*#:;~]')


def normalize_caption(text: str) -> str:
    """A caption as the original trains on it: lower case, some punctuation as spaces, runs of spaces folded, 30 words.

    Source: `pre_caption` in `data/utils.py` of the original repository.
    """
    return " ".join(_REMOVED.sub(" ", text.lower()).split()[:MAX_WORDS])


def read_captions(cell: Any) -> list[str]:
    """The captions of one cell, as written but stripped; empty ones are left out.

    Args:
        cell: Text with a caption a line; or a struct with `raw`, `caption` or `text`; or a list of texts or structs,
            where each is one caption, line breaks and all; or nothing.

    Raises:
        TypeError: It is none of these.
    """
    found = cell.split("\n") if isinstance(cell, str) else flatten_texts(cell, TEXT_KEYS)
    return [caption.strip() for caption in found if caption.strip()]


def flatten_texts(cell: Any, keys: Sequence[str], *, numbers: bool = False) -> list[str]:
    """The texts in a cell: a string, a list, a struct that has one of `keys`, or any nesting of these; None has none.

    Args:
        cell: Of a table.
        keys: Of structs, in the order in which they are preferred.
        numbers: Whether numbers are texts too.

    Raises:
        TypeError: There is something else in it.
    """
    if cell is None:
        return []
    if isinstance(cell, str):
        return [cell]
    if numbers and isinstance(cell, (int, float)) and not isinstance(cell, bool):
        return [str(cell)]
    if isinstance(cell, dict):
        found = [key for key in keys if key in cell]
        if not found:
            raise TypeError(f"a struct of {', '.join(cell)}")
        return flatten_texts(cell[found[0]], keys, numbers=numbers)
    if isinstance(cell, list):
        return [text for item in cell for text in flatten_texts(item, keys, numbers=numbers)]
    raise TypeError(f"a {type(cell).__name__} ({cell!r:.50})")
