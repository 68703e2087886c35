"""Captions: read from any shape they are stored in, and cleaned as BLIP's authors clean them."""

from __future__ import annotations

import re
from typing import Any

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
    found = cell.split("\n") if isinstance(cell, str) else _flatten(cell)
    return [caption.strip() for caption in found if caption.strip()]


def _flatten(cell: Any) -> list[str]:
    if cell is None:
        return []
    if isinstance(cell, str):
        return [cell]
    if isinstance(cell, dict):
        keys = [key for key in TEXT_KEYS if key in cell]
        if not keys:
            raise TypeError(f"a struct of {', '.join(cell)}")
        return _flatten(cell[keys[0]])
    if isinstance(cell, list):
        return [caption for item in cell for caption in _flatten(item)]
    raise TypeError(f"a {type(cell).__name__} ({cell!r:.50})")
