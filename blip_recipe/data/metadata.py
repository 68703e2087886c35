"""Check each line of an imagefolder's `metadata.jsonl` before `datasets` reads it.

`datasets` uses the JSON reader of pyarrow. It crashes on some broken lines (a segmentation fault), and does not name
the line of others.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from blip_recipe.data.rows import join_first
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path


def check_metadata(folder: Path) -> None:
    """Check that every line of every `metadata.jsonl` below `folder` is a JSON object with a file name.

    Raises:
        RecipeError: Some lines are not. The message names the file and the first ten lines.
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
        return f"is not valid JSON ({error})"
    if not isinstance(record, dict):
        return "is not a JSON object"
    if not any(key.endswith(("file_name", "file_names")) for key in record):
        return "has no file_name"
    return "has a text that is not valid Unicode" if _has_surrogate(record) else None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("it has a duplicate key")
    return record


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _has_surrogate(value: Any) -> bool:
    """Whether a text in `value` holds a lone surrogate, which UTF-8 cannot encode."""
    return any(0xD800 <= ord(character) <= 0xDFFF for character in json.dumps(value, ensure_ascii=False))
