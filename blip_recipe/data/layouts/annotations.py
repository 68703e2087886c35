"""Read COCO captions JSON, which has no splits, and Karpathy JSON, with a split for each image."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import chain
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from blip_recipe.data.layouts.table import Record, Table, table_of, warn_left_out
from blip_recipe.data.rows import join_first
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EXPECTED = (
    "Expected COCO captions JSON ('images' with id and file_name, 'annotations' with image_id and caption) or Karpathy "
    "JSON ('images' with filename, split and sentences)."
)


def read_coco(content: dict[str, Any], file: Path) -> Table:
    """Read COCO captions: the fields of each image, and lists of the texts of its annotations under their own names.

    Raises:
        RecipeError: A record lacks a field, or two images share an id.
    """
    images, annotations = content["images"], content["annotations"]
    check_records(images, {"id": (int, str)}, "images", file)
    check_records(annotations, {"image_id": (int, str)}, "annotations", file)
    texts: defaultdict[int | str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for annotation in annotations:
        of_image = texts[_plain_id(annotation["image_id"])]
        for name, value in annotation.items():
            if isinstance(value, str) and name not in ("id", "image_id"):
                of_image[name].append(value)
    if annotations and not any(texts.values()):
        raise RecipeError(
            f"{file}: annotations have no 'caption' but {', '.join(dict.fromkeys(chain(*annotations)))}. {EXPECTED}"
        )
    images = _drop_repeated(images, file)
    known = {_plain_id(image["id"]) for image in images}
    unknown = [each["image_id"] for each in annotations if _plain_id(each["image_id"]) not in known]
    warn_left_out(file, "annotations belong to images that it does not list, and are left out; their image_id", unknown)
    names = dict.fromkeys(name for of_image in texts.values() for name in of_image)
    columns = {name: [texts[_plain_id(image["id"])][name] for image in images] for name in names}
    records = [{**image, **{name: values[row] for name, values in columns.items()}} for row, image in enumerate(images)]
    return table_of(records, file.parent, image_column=_first_of(images, "file_name"), id_column="id")


def _plain_id(image_id: int | str) -> int | str:
    """An id as a number if it can be one: `"000042"` and 42 are the same image."""
    return int(image_id) if isinstance(image_id, str) and image_id.isascii() and image_id.isdigit() else image_id


def _drop_repeated(images: list[Record], file: Path) -> list[Record]:
    """Drop repeated records of an image.

    Raises:
        RecipeError: Two different images share an id.
    """
    kept: dict[int | str, Record] = {}
    repeated = []
    for image in images:
        first = kept.setdefault(_plain_id(image["id"]), image)
        if first is not image:
            if first != image:
                names = " and ".join(json.dumps(each, ensure_ascii=False)[:80] for each in (first, image))
                raise RecipeError(
                    f"{file}: two images share the id {image['id']}, so that their captions cannot be told apart: "
                    f"{names}. Give each image an id of its own."
                )
            repeated.append(image["id"])
    warn_left_out(file, "images are listed again with the same fields, and are used once; their id", repeated)
    return list(kept.values())


def read_karpathy(content: dict[str, Any], file: Path) -> Table:
    """Read Karpathy's JSON: the fields of each image, and `image`, its folder and name."""
    images = content["images"]
    check_records(images, {"split": (str,)}, "images", file)
    records = [
        image | {"image": _path_of(image)} if isinstance(image.get("filename"), str) else image for image in images
    ]
    ids = (name for name in ("cocoid", "imgid") if all(name in image for image in images))
    return table_of(
        records,
        file.parent,
        splits=[image["split"] for image in images],
        image_column=_first_of(records, "image"),
        id_column=next(ids, None),
    )


def _path_of(image: Record) -> str:
    folder, name = image.get("filepath"), image["filename"]
    # Joining would merge the double slashes of a URL.
    return str(PurePosixPath(folder, name)) if isinstance(folder, str) and folder else name


def _first_of(records: list[Record], name: str) -> str | None:
    return name if any(name in record for record in records) else None


def check_records(records: Any, fields: dict[str, tuple[type, ...]], name: str, file: Path) -> None:
    """Check that all records are objects with these fields of these types.

    Raises:
        RecipeError: Some are not. The message names the first ten.
    """
    if not isinstance(records, list):
        raise RecipeError(f"{file} has no list of {name!r}. {EXPECTED}")
    broken: Sequence[int] = [
        number
        for number, record in enumerate(records)
        if not isinstance(record, dict) or not all(isinstance(record.get(field), fields[field]) for field in fields)
    ]
    if broken:
        raise RecipeError(
            f"{file}: {len(broken):,} of {len(records):,} {name} have no valid {' or '.join(fields)} (numbers "
            f"{join_first(broken)}): the first is {json.dumps(records[broken[0]])[:100]}. {EXPECTED}"
        )
