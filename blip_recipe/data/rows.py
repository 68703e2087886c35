"""What every source gives, and how it becomes rows of `image`, `image_id` and `captions`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MAX_LISTED = 10
"""How many offenders a message names."""


@dataclass
class SplitColumns:
    """A split as its source has it, row by row; rows may share an image.

    Args:
        images: One column `image`, not decoded (`datasets.Image(decode=False)`).
        captions: Captions of each row.
        image_ids: Ids of each row; None where the source has none.
    """

    images: Dataset
    captions: list[list[str]]
    image_ids: Sequence[int | str] | None


def join_columns(columns: SplitColumns, where: str) -> Dataset:
    """Rows of `image`, `image_id` and `captions`, an image a row, in the order in which images first appear.

    Pictures are neither decoded nor copied: 20 GB of them stay where they are.

    Raises:
        RecipeError: There are no rows, or ids are too large.
    """
    if len(columns.images) == 0:
        raise RecipeError(f"{where} is empty: expected at least one picture with captions.")
    image_ids = range(len(columns.images)) if columns.image_ids is None else columns.image_ids
    id_type = infer_id_type(image_ids, where)
    captions: dict[int | str, list[str]] = {}
    first_rows: dict[int | str, int] = {}
    for row, (image_id, found) in enumerate(zip(image_ids, columns.captions, strict=True)):
        first_rows.setdefault(image_id, row)
        captions.setdefault(image_id, []).extend(found)
    facts = Dataset.from_dict(
        {"image_id": list(image_ids), "captions": [captions[image_id] for image_id in image_ids]},
        features=Features({"image_id": Value(id_type), "captions": List(Value("string"))}),
    )
    # Joined before rows are chosen: joining chosen rows would copy their pictures.
    rows = concatenate_datasets([columns.images, facts], axis=1)
    return rows if len(first_rows) == len(rows) else rows.select(list(first_rows.values()))


def infer_id_type(image_ids: Sequence[object], where: str) -> str:
    """The column type of ids, which must be all integers or all text."""
    if all(type(each) is str for each in image_ids):
        return "string"
    for each in image_ids:
        if type(each) is not int or not -(2**63) <= each < 2**63:
            raise RecipeError(
                f"{where}: there is an image with the id {each!r:.50}. Expected either integers of 64 bits or text as "
                "ids of all images."
            )
    return "int64"


def images_from_paths(paths: Sequence[str | None]) -> Dataset:
    """Files and URLs as the column `image`."""
    return Dataset.from_dict({"image": list(paths)}, features=Features({"image": Image(decode=False)}))


def absolute(path: Path | str) -> str:
    """`path` from the root on, without `..`, and with its links as they are written."""
    return os.path.abspath(path)  # noqa: PTH100 - `Path.resolve` follows links


@dataclass(frozen=True)
class PathRoot:
    """Where the paths of a data set may lead.

    Args:
        folder: Relative paths start here and may not leave it by `..`; None where no path of this machine is allowed.
        absolute: Whether absolute paths may lie elsewhere: in a user's own file they are the user's word.
    """

    folder: Path | None
    absolute: bool = False

    def resolve(self, paths: Sequence[str | None], where: str) -> list[str | None]:
        """Paths as they are opened; URLs and None stay as they are.

        Links are followed: whoever made the folder made them, a list of names cannot.

        Raises:
            RecipeError: Paths lead elsewhere; names the first ten.
        """
        found = [path if path is None or "://" in path else self._place(path) for path in paths]
        outside = [path for path, place in zip(paths, found, strict=True) if path is not None and place is None]
        if outside:
            allowed = f"paths below {self.folder}" if self.folder else "embedded pictures or URLs, or image_root"
            raise RecipeError(
                f"{where}: {len(outside):,} of {len(paths):,} paths lead to files that this data set may not name: "
                f"{join_first(list(map(repr, outside)))}. Expected {allowed}."
            )
        return found

    def _place(self, path: str) -> str | None:
        if self.folder is None:
            return None
        root, place = absolute(self.folder), absolute(self.folder / path)
        return (
            place if place.startswith(root.rstrip("/") + "/") or (self.absolute and Path(path).is_absolute()) else None
        )


def parse_split(split: str, known: Collection[str], where: str) -> list[str]:
    """The names in a split or sum of splits (`train+restval`).

    Raises:
        RecipeError: One is not among `known`.
    """
    names = [name.strip() for name in split.split("+")]
    for name in names:
        if name not in known:
            raise RecipeError(f"{where} has no split {name!r}: its splits are {', '.join(known)}.")
    return names


def join_first(names: Sequence[object]) -> str:
    """The first ten of `names`, for a message."""
    more = ", …" if len(names) > MAX_LISTED else ""
    return ", ".join(map(str, names[:MAX_LISTED])) + more
