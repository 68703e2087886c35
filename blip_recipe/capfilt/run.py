"""Record which recipe owns an output directory, and which shards are done.

A shard is done when its note exists; the note is written last. An unreadable shard has a note with the reason, and the
next run tries it again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.capfilt.shard_output import DATA, JUDGED, data_path, judged_path
from blip_recipe.data.storage import read_json, remove_leftovers, write_json
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blip_recipe.capfilt.arguments import CapFiltArguments
    from blip_recipe.capfilt.source import Shard, Source

RUN = "capfilt.json"
"""File in the output directory with the recipe and the shards of the run."""

NOTES = "shards"
"""Folder with a note for each shard."""

MAY_CHANGE = ("output_dir", "on_bad_image", "batch_size")
"""Keys that may change when a run is resumed, because they change no score beyond rounding."""


def claim_output_dir(arguments: CapFiltArguments, source: Source) -> None:
    """Record the recipe of the output directory, and delete temporary files of a killed run.

    Raises:
        RecipeError: The directory belongs to another recipe, or the data set has changed.
    """
    output_dir = Path(arguments.output_dir)
    recipe = {key: value for key, value in dataclasses.asdict(arguments).items() if key not in MAY_CHANGE}
    shards = [[shard.name, shard.images] for shard in source.shards]
    before = read_json(output_dir / RUN)
    if before:
        _check_recipe(output_dir, before["recipe"], recipe)
        if before["shards"] != shards:
            raise RecipeError(
                f"{output_dir} has results for {len(before['shards']):,} shards of {arguments.dataset_name}, but its "
                f"shards have changed (now {len(shards):,}): choose another output_dir."
            )
    else:
        if any((output_dir / folder).exists() for folder in (DATA, JUDGED, NOTES)):
            raise RecipeError(f"{output_dir} has files that are not from a CapFilt run: choose another output_dir.")
        write_json(output_dir / RUN, {"recipe": recipe, "shards": shards})
    for folder in (DATA, JUDGED, NOTES):
        remove_leftovers(output_dir / folder)


def _check_recipe(output_dir: Path, before: dict[str, Any], recipe: dict[str, Any]) -> None:
    changed = [
        f"{key} (was {before.get(key)!r}, is {recipe.get(key)!r})"
        for key in sorted({*before, *recipe})
        if before.get(key) != recipe.get(key)
    ]
    if changed:
        raise RecipeError(
            f"{output_dir} has the run of another recipe, which differs in {', '.join(changed)}. Choose another "
            "output_dir, or undo the change to resume the run."
        )


def find_pending(output_dir: Path, shards: Sequence[Shard]) -> list[Shard]:
    """The shards that are not done, including unreadable ones."""
    return [shard for shard in shards if "images" not in read_note(output_dir, shard)]


def read_note(output_dir: Path, shard: Shard) -> dict[str, Any]:
    """Read the note of a shard; empty if there is none."""
    return read_json(_note_path(output_dir, shard))


def write_note(output_dir: Path, shard: Shard, note: dict[str, Any]) -> None:
    """Write the note of a shard that is done."""
    write_json(_note_path(output_dir, shard), {"shard": shard.name} | note)


def write_fault(output_dir: Path, shard: Shard, source: Source, fault: str) -> None:
    """Write the note of an unreadable shard, and delete its results."""
    data_path(output_dir, shard.number, source.kind).unlink(missing_ok=True)
    judged_path(output_dir, shard.number).unlink(missing_ok=True)
    write_note(output_dir, shard, {"fault": fault})


def _note_path(output_dir: Path, shard: Shard) -> Path:
    return output_dir / NOTES / f"train-{shard.number:05}.json"
