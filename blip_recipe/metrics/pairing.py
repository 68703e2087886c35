"""Pair the captions of a file with the references of another one: by id, or by the file name of the picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.files import read_named_predictions, read_named_references
from blip_recipe.metrics.scores import ImageId, check_same_images, match_ids, name_images


class Paired(NamedTuple):
    """The captions and the references of the same images, and the number of images that have references."""

    predictions: dict[ImageId, str]
    references: dict[ImageId, list[str]]
    images: int


def pair_files(predictions_file: Path, references_file: Path, *, subset: bool = False) -> Paired:
    """Read captions and references, and pair them by image.

    Args:
        predictions_file: The captions (see `read_predictions`).
        references_file: The references (see `read_references`).
        subset: Whether there may be references of more images than captions. These are left out.

    Raises:
        RecipeError: A file has another format, or the images differ.
    """
    predictions, by_name = read_named_predictions(predictions_file)
    references, names = read_named_references(references_file, one_per_row=references_file != predictions_file)
    if by_name:
        predictions = match_names(predictions, names, predictions_file, references_file)
    references = match_ids(references, predictions)
    missing = [image_id for image_id in references if image_id not in predictions]
    if missing and len(missing) < len(references) and not subset:
        raise RecipeError(
            f"there is no caption for {name_images(missing)}: expected one caption for each image with references. To "
            f"score only the {len(predictions):,} images with a caption, set subset to true."
        )
    images = len(references)
    if subset and len(missing) < images:
        references = {image_id: texts for image_id, texts in references.items() if image_id in predictions}
    check_same_images(predictions, references)
    return Paired(predictions, references, images)


def match_names(
    predictions: Mapping[ImageId, str], names: Mapping[ImageId, str], predictions_file: Path, references_file: Path
) -> dict[ImageId, str]:
    """Replace the paths of pictures by the ids of the references whose file has the same name.

    If several references have that name, the folders must fit too.

    Raises:
        RecipeError: No reference fits a picture, or several do, or two pictures fit the same.
    """
    if not names:
        raise RecipeError(
            f"{predictions_file} names pictures by their files, but {references_file} has no file names: expected "
            "file_name, filename or image in the references, or image_id in the predictions."
        )
    known: defaultdict[str, list[tuple[str, ImageId]]] = defaultdict(list)
    for image_id, name in names.items():
        known[base_name(name)].append((name, image_id))
    found: dict[str, list[ImageId]] = {}
    for path in map(str, predictions):
        fitting = known[base_name(path)]
        if len(fitting) > 1:
            fitting = [
                (name, image_id) for name, image_id in fitting if f"/{_slashes(path)}".endswith(f"/{_slashes(name)}")
            ]
        found[path] = [image_id for _, image_id in fitting]
    if unclear := [path for path, ids in found.items() if len(ids) != 1]:
        raise RecipeError(
            f"{len(unclear):,} of {len(found):,} pictures of {predictions_file}, such as {unclear[0]}, are not exactly "
            f"one picture of {references_file}: their file names are compared, and folders if names occur twice."
        )
    matched = {ids[0]: predictions[path] for path, ids in found.items()}
    if len(matched) < len(found):
        raise RecipeError(
            f"{len(found):,} pictures of {predictions_file} have only {len(matched):,} file names: expected one "
            "caption for each picture."
        )
    return matched


def base_name(path: str) -> str:
    """The file name at the end of a path or URL."""
    return _slashes(path).rpartition("/")[2]


def _slashes(path: str) -> str:
    return path.replace("\\", "/")
