"""Check every row before training: report all errors at once, or skip and record the bad rows.

With several processes, each checks its share of the rows, and all share the results.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch.distributed
from tqdm import tqdm

from blip_recipe.data.captions import validate_captions
from blip_recipe.data.holdout import check_shared, describe_shared
from blip_recipe.data.images import Picture, address, digest, inspect_picture, is_drawn, path_of
from blip_recipe.data.rows import stored_paths
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset

    from blip_recipe.data.arguments import DataArguments

    RowError = Callable[[Mapping[str, Any]], str | None]
    Inspected = dict[int, tuple[str | None, bytes | None]]

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped_rows.jsonl"
"""File in the output directory that lists the rows skipped by `on_bad_image: skip`, one per line."""

MAX_LISTED = 10

BATCH = 16
"""Rows that a thread reads at once."""


@dataclass(frozen=True)
class SkippedRow:
    """A row that cannot be used.

    Attributes:
        row: Its index among the images of the split.
        image_id: Its id in the data set, or `row` without one.
        split: The name of the split.
        reason: Why it cannot be used.
    """

    row: int
    image_id: int | str
    split: str
    reason: str


@dataclass(frozen=True)
class CheckedSplits:
    """Splits after `check_splits`.

    Attributes:
        rows: The rows that can be used, by role.
        skipped: The rows that cannot be used.
        shared: A sentence for each pair of roles that shares images, if that is allowed.
        digests: The digests of all pictures.
    """

    rows: dict[str, Dataset]
    skipped: list[SkippedRow]
    shared: list[str]
    digests: frozenset[bytes]


def check_splits(
    splits: Mapping[str, Dataset], arguments: DataArguments, validate_row: RowError | None = None
) -> CheckedSplits:
    """Check all rows of all splits, decoding every picture. All processes of a run must call this.

    Args:
        splits: The splits by role, from `load_splits`.
        arguments: The recipe's data keys. `on_bad_image` is `"fail"` or `"skip"`.
        validate_row: Returns what is wrong with a row apart from its picture, or None. Default: check its captions.

    Raises:
        RecipeError: Roles share images, and `allow_shared_images` is false. With `"fail"`, some row cannot be used;
            the message names the first ten. With `"skip"`, no row of a split can be used.
    """
    names = {role: str(name) for role, (name, _) in arguments.splits().items()}
    validate = validate_row or (lambda record: validate_captions(record["captions"]))
    allowed = arguments.allow_shared_images
    if not allowed:
        # Most shared images can be found by their paths, before pictures are read.
        check_shared({role: stored_paths(rows) for role, rows in splits.items()}, names)
    inspected = {role: _inspect_rows(rows, names[role], validate) for role, rows in splits.items()}
    bad = {role: each for role, (each, _) in inspected.items()}
    digests = {role: each for role, (_, each) in inspected.items()}
    if not allowed:
        check_shared(digests, names)
    found = list(chain.from_iterable(bad.values()))
    if found and arguments.on_bad_image == "fail":
        raise RecipeError(
            f"{len(found):,} of {sum(map(len, splits.values())):,} rows cannot be used:\n{_list(found)}\n"
            "Repair or remove them, or set on_bad_image to 'skip' to go on without them."
        )
    for role, rows in splits.items():
        if len(bad[role]) == len(rows):
            raise RecipeError(
                f"None of the {len(rows):,} rows of split {names[role]!r} can be used:\n{_list(bad[role])}"
            )
    for each in found if int(os.environ.get("RANK", 0)) == 0 else ():
        logger.warning("Skipped %s", _describe(each))
    usable = {role: _drop_rows(rows, bad[role]) for role, rows in splits.items()}
    shared = describe_shared(digests, names) if allowed else []
    return CheckedSplits(usable, found, shared, frozenset(filter(None, chain.from_iterable(digests.values()))))


def write_skipped_rows(path: Path, skipped: Sequence[SkippedRow]) -> None:
    """Write one JSON line per skipped row. If none was skipped, delete the file of an earlier run."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(each), ensure_ascii=False) for each in skipped)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")


def _describe(bad: SkippedRow) -> str:
    return f"split {bad.split!r}, image_id {bad.image_id}: {bad.reason}"


def _list(bad: Sequence[SkippedRow]) -> str:
    lines = [f"  {_describe(each)}" for each in bad[:MAX_LISTED]]
    if len(bad) > MAX_LISTED:
        lines.append(f"  and {len(bad) - MAX_LISTED:,} more")
    return "\n".join(lines)


def _drop_rows(rows: Dataset, bad: Sequence[SkippedRow]) -> Dataset:
    skipped = {each.row for each in bad}
    return rows.select([row for row in range(len(rows)) if row not in skipped]) if skipped else rows


def _inspect_rows(rows: Dataset, split: str, validate_row: RowError) -> tuple[list[SkippedRow], list[bytes | None]]:
    """The rows of a split that cannot be used, in order, and the digest of each row's picture."""
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    share = range(rank, len(rows), processes)
    batches = [share[start : start + BATCH] for start in range(0, len(share), BATCH)]
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))

    def inspect(batch: range) -> Inspected:
        table = rows[batch]
        records = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
        return {row: _inspect_row(record, validate_row) for row, record in zip(batch, records, strict=True)}

    mine: Inspected = {}
    with (
        ThreadPoolExecutor(min(32, threads)) as pool,
        tqdm(desc=f"Checking {split}", total=len(share), unit="row", file=sys.stderr, disable=None) as bar,
    ):
        for found in pool.map(inspect, batches):
            mine |= found
            bar.update(len(found))
    everyone = dict(sorted(chain.from_iterable(each.items() for each in _gather(mine, processes))))
    ids = rows.select_columns(["image_id"])
    bad = [SkippedRow(row, ids[row]["image_id"], split, fault) for row, (fault, _) in everyone.items() if fault]
    return bad, [digest for _, digest in everyone.values()]


def _inspect_row(record: Mapping[str, Any], validate_row: RowError) -> tuple[str | None, bytes | None]:
    image = record["image"]
    # A scene of the embedded data set is whole, and differs from all others: it need not be drawn to be compared.
    fault, found = (None, digest(address(image).encode())) if is_drawn(image) else inspect_picture(image)
    return name_fault(validate_row(record), image) or fault, found


def name_fault(fault: str | None, image: Picture) -> str | None:
    """Add the name of a row's picture to what is wrong with its texts."""
    path = path_of(image)
    return f"{fault} ({path})" if fault and path else fault


def _gather(found: Inspected, processes: int) -> Iterable[Inspected]:
    """Gather what all processes found."""
    if processes == 1:
        return [found]
    everyone: list[Any] = [None] * processes
    torch.distributed.all_gather_object(everyone, found)
    return everyone
