"""Read captions from JSON lines, and from JSON files that are neither COCO's nor Karpathy's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from blip_recipe.data.layouts.table import Record, Table, table_of, warn_left_out
from blip_recipe.data.layouts.text_files import read_text
from blip_recipe.data.rows import join_first
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED = (
    "Expected a list of objects with a picture and captions, an object of captions by picture, COCO captions JSON, or "
    "Karpathy JSON."
)
_TURN_IMAGE = re.compile(r"\s*<image>\s*")


def load_json(file: Path, expected: str = EXPECTED) -> Any:
    """Read a JSON file.

    Raises:
        RecipeError: It cannot be read. The message ends with `expected`.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise RecipeError(f"{file} cannot be read as JSON: it is nested too deeply. {expected}") from error
    except (ValueError, OSError) as error:
        raise RecipeError(f"{file} cannot be read as JSON: {error}. {expected}") from error


def read_lines(file: Path) -> Table:
    """Read JSON lines: an object in each line.

    Raises:
        RecipeError: A line is not a JSON object.
    """
    records: list[Any] = []
    broken: list[int] = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                broken.append(number)
    if broken:
        raise RecipeError(
            f"{file} has {len(broken):,} lines that are not JSON (lines {join_first(broken)}): expected an object with "
            "a picture and captions in each line."
        )
    return read_objects(records, file)


def read_list(content: Any, file: Path) -> Table:
    """Read a list of objects, or the list under the key `data` (TextCaps, TextVQA)."""
    return read_objects(content["data"] if isinstance(content, dict) else content, file)


def read_mapping(content: dict[str, Any], file: Path) -> Table:
    """Read an object of captions by picture: `{"1.jpg": ["a dog", "a brown dog"]}`."""
    return table_of([{"image": name, "captions": captions} for name, captions in content.items()], file.parent)


def read_objects(records: list[Any], file: Path) -> Table:
    """Read a list of objects with a picture and texts.

    Conversations (LLaVA) give a row for each question, and for a single reply also its caption. Pictures that the
    command `caption` could not read are left out.

    Raises:
        RecipeError: An item is not an object.
    """
    wrong = [number for number, each in enumerate(records) if not isinstance(each, dict)]
    if wrong or not records:
        what = f"items that are not objects (numbers {join_first(wrong)})" if records else "no items"
        raise RecipeError(f"{file} has {what}. {EXPECTED}")
    failed = [each for each in records if each.keys() == {"image", "error"}]
    warn_left_out(file, "pictures had no caption but an error and are left out", [each["image"] for each in failed])
    kept = [each for each in records if each.keys() != {"image", "error"}]
    if any("conversations" in each for each in kept):
        kept = [row for each in kept for row in _rows_of_conversation(each)]
    return table_of(kept, file.parent)


def _rows_of_conversation(record: Record) -> Iterator[Record]:
    """A row for each question and reply of a conversation; the first reply is the caption."""
    turns = record["conversations"]
    rest = {key: value for key, value in record.items() if key != "conversations"}
    pairs = zip(turns[::2], turns[1::2], strict=False)
    for number, (asked, said) in enumerate(pairs):
        question, answer = (str(turn["value"]) for turn in (asked, said))
        row = {**rest, "question": _TURN_IMAGE.sub(" ", question).strip(), "answer": answer}
        yield row | {"caption": answer} if number == 0 else row
