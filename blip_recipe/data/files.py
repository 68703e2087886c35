"""Read captions files: COCO JSON (no splits) and Karpathy JSON (a split for each image)."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.data.captions import read_captions
from blip_recipe.data.columns import check_column
from blip_recipe.data.rows import PathRoot, SplitColumns, images_from_paths, join_first, parse_split
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from blip_recipe.data.arguments import CaptionDataArguments, DataArguments

Record = dict[str, Any]

PROBED = 100
"""How many paths are checked before the error that `image_root` is wrong."""


def read_captions_file(arguments: CaptionDataArguments, split: str) -> SplitColumns:
    """Read a COCO captions JSON (all of it) or one split of a Karpathy JSON.

    Paths are relative to `image_root`, else to the file's folder. Ids are COCO's `id`, Karpathy's `cocoid` or `imgid`,
    unless `image_id_column` names another field.

    Raises:
        RecipeError: The file has another format, no such split or field, or its picture paths do not exist.
    """
    file = Path(str(arguments.dataset_name)).expanduser()
    content = _load_json(file)
    try:
        if "annotations" in content:
            return _read_coco(content, arguments, file)
        return _read_karpathy(content["images"], arguments, split, file)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecipeError(f"{file} is not as expected ({type(error).__name__}: {error}). {EXPECTED}") from error


EXPECTED = (
    "Expected COCO captions JSON ('images' with id and file_name, 'annotations' with image_id and caption) or Karpathy "
    "JSON ('images' with filename, split and sentences)."
)


def _load_json(file: Path) -> Record:
    content = load_json(file, EXPECTED)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise RecipeError(f"{file} has no list of 'images'. {EXPECTED}")
    return content


def load_json(file: Path, expected: str) -> Any:
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


def _read_coco(content: Record, arguments: CaptionDataArguments, file: Path) -> SplitColumns:
    images, annotations = content["images"], content["annotations"]
    _check_records(images, {"id": (int, str)} | _path_fields(arguments, "file_name"), "images", file)
    _check_records(annotations, {"image_id": (int, str)}, "annotations", file)
    names = arguments.caption_column or ["caption"]
    captions: defaultdict[int | str, list[str]] = defaultdict(list)
    for annotation in annotations:
        captions[annotation["image_id"]] += _captions_of(annotation, names, file)
    # The `id` of images is the `image_id` of annotations.
    id_column = "id" if arguments.image_id_column in (None, "image_id") else arguments.image_id_column
    return SplitColumns(
        _images_of(images, arguments, ("file_name",), file),
        [captions[image["id"]] for image in images],
        _ids_of(images, id_column, file),
    )


def _read_karpathy(images: list[Record], arguments: CaptionDataArguments, split: str, file: Path) -> SplitColumns:
    _check_records(images, {"split": (str,)} | _path_fields(arguments, "filename"), "images", file)
    counts = Counter(image["split"] for image in images)
    wanted = parse_split(split, counts, str(file))
    images = [image for name in wanted for image in images if image["split"] == name]
    names = arguments.caption_column or ["sentences"]
    captions = [_captions_of(image, names, file) for image in images]
    known_ids = (name for name in ("cocoid", "imgid") if all(name in image for image in images))
    id_column = arguments.image_id_column or next(known_ids, None)
    return SplitColumns(
        _images_of(images, arguments, ("filepath", "filename"), file),
        captions,
        None if id_column is None else _ids_of(images, id_column, file),
    )


def _path_fields(arguments: CaptionDataArguments, default: str) -> dict[str, tuple[type, ...]]:
    """The path field that records must have, unless the recipe names another one."""
    return {default: (str,)} if arguments.image_column is None else {}


def _check_records(records: Any, fields: dict[str, tuple[type, ...]], name: str, file: Path) -> None:
    """Check that all `records` are objects with `fields` of these types, and name the first ten that are not."""
    if not isinstance(records, list):
        raise RecipeError(f"{file} has no list of {name!r}. {EXPECTED}")
    broken = [
        number
        for number, record in enumerate(records)
        if not isinstance(record, dict) or not all(isinstance(record.get(field), fields[field]) for field in fields)
    ]
    if broken:
        raise RecipeError(
            f"{file}: {len(broken):,} of {len(records):,} {name} have no valid {' or '.join(fields)} (numbers "
            f"{join_first(broken)}): the first is {json.dumps(records[broken[0]])[:100]}. {EXPECTED}"
        )


def _captions_of(record: Record, names: Sequence[str], file: Path) -> list[str]:
    for name in names:
        check_column(record, name, "caption_column", str(file))
    # Pass a list, so that a line break does not split a caption.
    return read_captions([record[name] for name in names])


def _ids_of(images: list[Record], column: str, file: Path) -> list[int | str]:
    for image in images:
        check_column(image, column, "image_id_column", str(file))
    return [image[column] for image in images]


def _images_of(images: list[Record], arguments: CaptionDataArguments, default: tuple[str, ...], file: Path) -> Dataset:
    """The column of paths: the field that the recipe names, else the fields `default` joined."""
    root = Path(arguments.image_root).expanduser() if arguments.image_root else file.parent
    if arguments.image_column is None:
        parts = [[image[field] for field in default if isinstance(image.get(field), str)] for image in images]
        # A single part may be a URL: Path would merge its double slashes.
        paths = [each[0] if len(each) == 1 else str(Path(*each)) for each in parts]
    else:
        for image in images:
            check_column(image, arguments.image_column, "image_column", str(file))
        _check_records(images, {arguments.image_column: (str, type(None))}, "images", file)
        paths = [image[arguments.image_column] for image in images]
    return find_pictures(paths, root, arguments, file)


def find_pictures(paths: Sequence[str | None], root: Path, arguments: DataArguments, file: Path) -> Dataset:
    """Resolve the `paths` listed in `file` below `root`, as the column `image`.

    Raises:
        RecipeError: Paths lead outside of `root`, or none of the first pictures exists.
    """
    # Absolute paths in the user's own file are allowed, unless image_root is set.
    places = PathRoot(root, absolute=arguments.image_root is None).resolve(paths, str(file))
    probed = list(filter(None, places[:PROBED]))
    if probed and not any("://" in place or os.path.exists(place) for place in probed):  # noqa: PTH110 - any name
        raise RecipeError(
            f"None of the pictures listed in {file} exists, such as {probed[0]}: set image_root to the base directory "
            "of their paths."
        )
    return images_from_paths(places)
