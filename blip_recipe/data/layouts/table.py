"""Hold the rows of a local source under the source's own names."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import Dataset

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

Record = dict[str, Any]

EXAMPLES = 3
"""Number of examples in a message about what is left out."""

LONGEST_EXAMPLE = 80
"""Maximum characters of an example."""


@dataclass(frozen=True)
class Table:
    """The rows of a source.

    Args:
        rows: The rows, with the source's own columns. Pictures are paths, URLs, or images that are not decoded.
        root: Base directory of relative paths, if it is not that of the data set.
        splits: The split of each row, or None if the source has no splits.
        image_column: The column of pictures, if the source tells it.
        id_column: The column of image ids, if the source has one.
        closed: Whether paths may not leave `root`, as in a downloaded zip.
    """

    rows: Dataset
    root: Path | None = None
    splits: Sequence[str] | None = None
    image_column: str | None = None
    id_column: str | None = None
    closed: bool = False


def table_of(records: Sequence[Record], root: Path, **facts: Any) -> Table:
    """Make a table of dictionaries. They may have different keys; missing values are None."""
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: _to_array([record.get(name) for record in records]) for name in names}
    return Table(Dataset(pa.table(columns)), root, **facts)


def _to_array(values: list[Any]) -> pa.Array:
    """Convert a column. Mixed numbers and texts become texts; other mixtures become JSON."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([each if each is None or isinstance(each, str) else json.dumps(each) for each in values])


def warn_left_out(where: object, what: str, examples: Sequence[object]) -> None:
    """Say how many items of a source are not used, with the first of them.

    Args:
        where: The source.
        what: What the items are and what happens to them, such as `"pictures have no text and are left out"`.
        examples: The items.
    """
    if examples:
        shown = ", ".join(str(each)[:LONGEST_EXAMPLE] for each in examples[:EXAMPLES])
        more = ", …" if len(examples) > EXAMPLES else ""
        logger.warning("%s: %s %s: %s%s", where, f"{len(examples):,}", what, shown, more)
