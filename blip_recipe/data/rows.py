"""What every source gives, and how it becomes rows of `image`, `image_id` and `captions`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

NAMED = 10
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
        RecipeError: There are no rows, or an image has no caption.
    """
    if len(columns.images) == 0:
        raise RecipeError(f"{where} is empty: expected at least one picture with captions.")
    image_ids = range(len(columns.images)) if columns.image_ids is None else columns.image_ids
    captions: dict[int | str, list[str]] = {}
    first_rows: dict[int | str, int] = {}
    for row, (image_id, found) in enumerate(zip(image_ids, columns.captions, strict=True)):
        first_rows.setdefault(image_id, row)
        captions.setdefault(image_id, []).extend(found)
    if bare := [image_id for image_id, found in captions.items() if not found]:
        raise RecipeError(
            f"{where}: {len(bare):,} of {len(captions):,} images have no caption (image_id "
            f"{_name_some(bare)}). Give them captions or leave them out."
        )
    id_type = "int64" if isinstance(next(iter(captions)), int) else "string"
    facts = Dataset.from_dict(
        {"image_id": list(image_ids), "captions": [captions[image_id] for image_id in image_ids]},
        features=Features({"image_id": Value(id_type), "captions": List(Value("string"))}),
    )
    # Joined before rows are chosen: joining chosen rows would copy their pictures.
    rows = concatenate_datasets([columns.images, facts], axis=1)
    return rows if len(first_rows) == len(rows) else rows.select(list(first_rows.values()))


def images_from_paths(paths: Sequence[str | None]) -> Dataset:
    """Files and URLs as the column `image`."""
    return Dataset.from_dict({"image": list(paths)}, features=Features({"image": Image(decode=False)}))


def resolve_path(path: str, root: Path) -> str:
    """`path` under `root`, if it is relative; URLs stay as they are."""
    return path if "://" in path else str(root / path)


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


def _name_some(names: Sequence[object]) -> str:
    more = ", …" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more
