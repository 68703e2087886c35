"""Join the columns that a source returns into rows of `image`, `image_id` and `captions`."""

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
"""Maximum number of items that an error message lists."""


@dataclass
class SplitColumns:
    """The columns of a split, row by row. Several rows may belong to one image.

    Args:
        images: One column `image`, not decoded (`datasets.Image(decode=False)`).
        captions: The captions of each row.
        image_ids: The image id of each row, or None if the source has no ids.
    """

    images: Dataset
    captions: list[list[str]]
    image_ids: Sequence[int | str] | None


def join_columns(columns: SplitColumns, where: str) -> Dataset:
    """Join columns into rows of `image`, `image_id` and `captions`, one image per row, in order of first appearance.

    Pictures are neither decoded nor copied.

    Raises:
        RecipeError: There are no rows, or ids have the wrong type.
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
    # Join before selecting rows: joining selected rows would copy their pictures.
    rows = concatenate_datasets([columns.images, facts], axis=1)
    return rows if len(first_rows) == len(rows) else rows.select(list(first_rows.values()))


def infer_id_type(image_ids: Sequence[object], where: str) -> str:
    """Infer the column type of ids: `int64` if all are integers, `string` if all are strings."""
    if all(type(each) is str for each in image_ids):
        return "string"
    for each in image_ids:
        if type(each) is not int or not -(2**63) <= each < 2**63:
            raise RecipeError(
                f"{where} has the image id {each!r:.50}: expected 64-bit integers for all images, or text for all."
            )
    return "int64"


def images_from_paths(paths: Sequence[str | None]) -> Dataset:
    """Put paths and URLs into a column `image`."""
    return Dataset.from_dict({"image": list(paths)}, features=Features({"image": Image(decode=False)}))


def absolute(path: Path | str) -> str:
    """Make `path` absolute and remove `..`, without resolving links."""
    return os.path.abspath(path)  # noqa: PTH100 - `Path.resolve` follows links


@dataclass(frozen=True)
class PathRoot:
    """The folder that the paths of a data set may not leave.

    Args:
        folder: Base directory of relative paths, which may not leave it by `..`. None allows no local paths at all.
        absolute: Whether absolute paths may lead anywhere, as in the user's own file.
    """

    folder: Path | None
    absolute: bool = False

    def resolve(self, paths: Sequence[str | None], where: str) -> list[str | None]:
        """Make paths absolute; URLs and None stay unchanged.

        Links are allowed: only the owner of the folder can create them, not a list of paths.

        Raises:
            RecipeError: Paths lead out of the folder. The message names the first ten.
        """
        found = [path if path is None or "://" in path else self._place(path) for path in paths]
        outside = [path for path, place in zip(paths, found, strict=True) if path is not None and place is None]
        if outside:
            allowed = f"paths below {self.folder}" if self.folder else "embedded pictures or URLs, or image_root"
            raise RecipeError(
                f"{where}: {len(outside):,} of {len(paths):,} paths are not allowed in this data set: "
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
    """Split a sum of splits (`train+restval`) into names.

    Raises:
        RecipeError: A name is not in `known`.
    """
    names = [name.strip() for name in split.split("+")]
    for name in names:
        if name not in known:
            raise RecipeError(f"{where} has no split {name!r}: its splits are {', '.join(known)}.")
    return names


def join_first(names: Sequence[object]) -> str:
    """Join the first ten of `names` for an error message."""
    more = ", …" if len(names) > MAX_LISTED else ""
    return ", ".join(map(str, names[:MAX_LISTED])) + more
