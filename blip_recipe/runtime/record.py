"""The file that makes a folder an exported model."""

from __future__ import annotations

from pathlib import Path

RECORD = "export.json"
"""The file of an exported folder that says what it holds."""

RECORD_VERSION = 1
"""The version of `export.json` that this package writes and reads."""

TASKS = {"captioning": "a captioner", "vqa": "a question answerer", "retrieval": "a matcher"}
"""The tasks of exported models, with their names in messages."""


def is_exported(name: str | Path) -> bool:
    """Whether `name` is the folder of an exported model."""
    return Path(name, RECORD).is_file()
