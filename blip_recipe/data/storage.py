"""Write files atomically, and read and write the JSON files of a run."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from blip_recipe.errors import RecipeError

PREDICTIONS_FILE = "predictions.jsonl"
"""File with the texts of the finished model for the scored split."""

BASELINE_PREDICTIONS_FILE = "baseline_predictions.jsonl"
"""File beside `predictions.jsonl` with the texts of the untouched base model for the same split."""

CAPTIONS_RESULT_FILE = "captions_result.json"
"""File beside `predictions.jsonl` that COCO's evaluation server takes."""

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names of temporary files of `atomic_file`, which a killed process leaves."""


def check_new(out: Path) -> None:
    """Check that `out` does not exist, or is an empty directory.

    Raises:
        RecipeError: It is not so.
    """
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise RecipeError(f"{out} is a file, or not empty: name a directory that does not exist yet.")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON, atomically and flushed to disk."""
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(), flush=True)


def write_atomically(path: Path, content: bytes, *, flush: bool = False) -> None:
    """Write a file atomically: a killed process leaves the complete file or none.

    Args:
        path: The file. Its directory is created if needed.
        content: The bytes to write.
        flush: Whether to flush to disk first, so the file survives a power failure.
    """
    with atomic_file(path, flush=flush) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path, *, flush: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name when the block ends. See `write_atomically`."""
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


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes in a folder, which need not exist."""
    for leftover in folder.glob(".*"):
        if LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
            leftover.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file, or return an empty dictionary if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_predictions(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one JSON line per image: `image_id`, `caption`, `references`, `scores`.

    Captions of images with integer ids go to `captions_result.json` too, in the form of COCO's evaluation server.
    """
    write_lines(path, records)
    results = path.with_name(CAPTIONS_RESULT_FILE)
    results.unlink(missing_ok=True)
    if records and all("caption" in each and type(each["image_id"]) is int for each in records):
        captions = [{"image_id": each["image_id"], "caption": each["caption"]} for each in records]
        write_atomically(results, json.dumps(captions, ensure_ascii=False).encode())


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one JSON line per record, atomically."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomically(path, "".join(lines).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the records that `write_lines` wrote, or return none if the file does not exist."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
