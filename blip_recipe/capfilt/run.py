"""Whose output directory it is, which shards are done, and what was found in them.

A shard is done when its note is there, which is written last. One that could not be read has a note too, which says
why; it is tried again.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.capfilt.shard_output import DATA, JUDGED, data_path, judged_path
from blip_recipe.data.storage import read_json, write_json
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blip_recipe.capfilt.arguments import CapFiltArguments
    from blip_recipe.capfilt.source import Shard, Source

RUN = "capfilt.json"
"""The file of an output directory that tells which recipe and data it belongs to."""

NOTES = "shards"
"""The folder with a note of each shard."""

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}")
"""Names of files that are being written (`storage.atomic_file`)."""

MAY_CHANGE = ("output_dir", "on_bad_image", "batch_size")
"""Keys that change no score beyond rounding: where a run stopped, they may be what it needs to go on."""


def claim_output_dir(arguments: CapFiltArguments, source: Source) -> None:
    """Note whose the output directory is, and remove what a run that died left half written.

    Raises:
        RecipeError: It belongs to another recipe, or the data set has changed since.
    """
    output_dir = Path(arguments.output_dir)
    recipe = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in MAY_CHANGE}
    shards = [[shard.name, shard.images] for shard in source.shards]
    before = read_json(output_dir / RUN)
    if before:
        _check_recipe(output_dir, before["recipe"], recipe)
        if before["shards"] != shards:
            raise RecipeError(
                f"{output_dir} holds {len(before['shards']):,} shards of {arguments.dataset_name}, which has others "
                f"now ({len(shards):,}): choose another output_dir."
            )
    else:
        if any((output_dir / folder).exists() for folder in (DATA, JUDGED, NOTES)):
            raise RecipeError(f"{output_dir} holds files that are of no CapFilt run: choose another output_dir.")
        write_json(output_dir / RUN, {"recipe": recipe, "shards": shards})
    for folder in (DATA, JUDGED, NOTES):
        for leftover in (output_dir / folder).glob(".*"):
            if LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()


def _check_recipe(output_dir: Path, before: dict[str, Any], recipe: dict[str, Any]) -> None:
    changed = [
        f"{key} (was {before.get(key)!r}, is {recipe.get(key)!r})"
        for key in sorted({*before, *recipe})
        if before.get(key) != recipe.get(key)
    ]
    if changed:
        raise RecipeError(
            f"{output_dir} holds the run of another recipe, which differs in {', '.join(changed)}. Choose another "
            "output_dir, or undo that to resume the run."
        )


def find_pending(output_dir: Path, shards: Sequence[Shard]) -> list[Shard]:
    """The shards that are not done, among them those that could not be read."""
    return [shard for shard in shards if "images" not in read_note(output_dir, shard)]


def read_note(output_dir: Path, shard: Shard) -> dict[str, Any]:
    """What was noted of a shard; empty if it is not done."""
    return read_json(_note_path(output_dir, shard))


def write_note(output_dir: Path, shard: Shard, note: dict[str, Any]) -> None:
    """Note that a shard is done."""
    write_json(_note_path(output_dir, shard), {"shard": shard.name} | note)


def write_fault(output_dir: Path, shard: Shard, source: Source, fault: str) -> None:
    """Note that a shard could not be read, of which nothing is left then."""
    data_path(output_dir, shard.number, source.kind).unlink(missing_ok=True)
    judged_path(output_dir, shard.number).unlink(missing_ok=True)
    write_note(output_dir, shard, {"fault": fault})


def _note_path(output_dir: Path, shard: Shard) -> Path:
    return output_dir / NOTES / f"train-{shard.number:05}.json"
