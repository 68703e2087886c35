"""`metadata.jsonl` of an imagefolder, looked at line by line before `datasets` reads it.

The JSON reader of pyarrow, which `datasets` uses, ends the process (a segmentation fault) on some broken lines, and
names no line where it does not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from blip_recipe.data.rows import join_first
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path


def check_metadata(folder: Path) -> None:
    """Make sure that every line of every `metadata.jsonl` below `folder` is a JSON object with a file's name.

    Raises:
        RecipeError: Names the file and the first ten lines that are not.
    """
    for path in sorted(folder.rglob("metadata.jsonl")):
        if not path.is_file():
            continue
        broken: dict[int, str] = {}
        count = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                count += bool(line.strip())
                if line.strip() and (fault := _line_error(line)):
                    broken[number] = fault
        if broken:
            first = next(iter(broken.values()))
            raise RecipeError(
                f"{path} cannot be read: {len(broken):,} of {count:,} lines are broken (lines "
                f"{join_first(list(broken))}); the first {first}. Expected a JSON object with file_name and captions "
                "on each line."
            )


def _line_error(line: bytes) -> str | None:
    try:
        record = json.loads(
            line.decode("utf-8"), object_pairs_hook=_reject_duplicate_keys, parse_constant=_reject_constant
        )
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error})"
    if not isinstance(record, dict):
        return "is no JSON object"
    if not any(key.endswith(("file_name", "file_names")) for key in record):
        return "has no file_name"
    return "has a text that is no Unicode" if _has_surrogate(record) else None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key stands there twice")
    return record


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON knows")


def _has_surrogate(value: Any) -> bool:
    """Whether a text in `value` holds half of a UTF-16 pair, which no UTF-8 can say."""
    return any(0xD800 <= ord(character) <= 0xDFFF for character in json.dumps(value, ensure_ascii=False))
