"""Files that are whole or not there, and those in which a run keeps what it measured."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as readable JSON; the file is never half written, nor empty after a power failure."""
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(), flush=True)


def write_atomically(path: Path, content: bytes, *, flush: bool = False) -> None:
    """Put `content` under its name at once, so that a process that dies leaves no half of it.

    Args:
        path: Where; its directory is made where needed.
        content: What.
        flush: Wait until the disk has it, for what must outlast a power failure.
    """
    with atomic_file(path, flush=flush) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path, *, flush: bool = False) -> Iterator[BinaryIO]:
    """A file to write that gets its name when it is done; as `write_atomically`, for what is written bit by bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_predictions(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one line an image: `image_id`, `caption`, `references`, `scores`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
