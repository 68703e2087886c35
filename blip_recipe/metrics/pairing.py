"""Pair the captions of a file with the references of another one: by id, or by the file name of the picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.files import read_named_predictions, read_named_references
from blip_recipe.metrics.scores import ImageId, check_same_images, match_ids, name_images


class Paired(NamedTuple):
    """The captions and the references of the same images.

    Attributes:
        predictions: The caption of each image.
        references: The references of each image.
        images: The number of images that have references.
        names: The file names of each image's picture in the references and in the predictions.
    """

    predictions: dict[ImageId, str]
    references: dict[ImageId, list[str]]
    images: int
    names: dict[ImageId, list[str]]


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
    files: dict[ImageId, str] = {}
    if by_name:
        paths = {path: str(path) for path in predictions}
        files = match_names(paths, names, predictions_file, references_file)
        predictions = {image_id: predictions[path] for image_id, path in files.items()}
    known = match_ids({each: (texts, names.get(each)) for each, texts in references.items()}, predictions)
    references = {image_id: texts for image_id, (texts, _) in known.items()}
    named = {image_id: name for image_id, (_, name) in known.items() if name}
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
    both = {each: [own[each] for own in (named, files) if each in own] for each in predictions}
    return Paired(predictions, references, images, both)


def find_pictures(names: Mapping[ImageId, Sequence[str]], image_root: Path, files: str) -> dict[ImageId, str]:
    """Find the picture of each image by its file names, and check that all are there.

    Args:
        names: The file names of each image, the first that exists is taken.
        image_root: Where relative names start.
        files: The files that the names are from, for error messages.

    Raises:
        RecipeError: An image has no name, or its picture is not there.
    """
    found: dict[ImageId, str | None] = {}
    for image_id, own in names.items():
        places = [name if "://" in name else str(image_root / name) for name in own]
        found[image_id] = next((place for place in places if "://" in place or Path(place).is_file()), None)
    missing = [image_id for image_id, place in found.items() if place is None]
    if not missing:
        return {image_id: place for image_id, place in found.items() if place is not None}
    first = names[missing[0]]
    if not first:
        raise RecipeError(
            f"{files} do not name the picture of {name_images(missing)}, which the metrics look at: expected "
            "file_name, filename or image beside each image_id."
        )
    raise RecipeError(
        f"There is no picture of {name_images(missing)}: expected {image_root / first[0]}. Set image_root to the "
        "folder where names of pictures start."
    )


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
