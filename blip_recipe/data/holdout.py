"""Hold out images for evaluation by a hash of each picture, and find the images that splits share."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from blip_recipe.data.arguments import FRACTION_KEYS
from blip_recipe.data.images import BadImageError, address, digest, is_url, read_content
from blip_recipe.data.rows import embedded_bytes, picture_keys
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blip_recipe.data.arguments import DataArguments

RANGE = 2**64

MAX_COMPARED_BYTES = 2**30
"""Embedded pictures of a script's data sets are compared up to this size, which takes about a second."""


def fingerprint(picture: Any) -> bytes:
    """A digest of a picture's encoded bytes, 16 bytes long; of its address for a URL or a file that cannot be read."""
    try:
        content = address(picture).encode(errors="surrogateescape") if is_url(picture) else read_content(picture)
    except BadImageError:
        content = address(picture).encode(errors="surrogateescape")
    return digest(content)


def role_of(image: bytes, shares: Mapping[str, float], seed: int) -> str:
    """The role (`train`, `eval` or `test`) of the image with this fingerprint.

    The hash is a number from 0 to 1. Test images have the lowest numbers and evaluation images the highest, so neither
    share moves images of the other.
    """
    key = hashlib.blake2b(image, digest_size=8, key=str(seed).encode()).digest()
    number = int.from_bytes(key, "big") / RANGE
    if number < shares.get("test", 0):
        return "test"
    return "eval" if number >= 1 - shares.get("eval", 0) else "train"


def divide(rows: Dataset, arguments: DataArguments) -> dict[str, Dataset]:
    """Divide the images of the training split into those of each role.

    Raises:
        RecipeError: A role gets no image.
    """
    shares = arguments.held_out()
    images = rows.select_columns(["image"])

    def find_role(row: int) -> str:
        return role_of(fingerprint(images[row]["image"]), shares, arguments.split_seed)

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        roles = list(pool.map(find_role, range(len(rows))))
    parts = {role: [row for row, each in enumerate(roles) if each == role] for role in ("train", *shares)}
    for role, found in parts.items():
        if not found:
            raise RecipeError(
                f"Of the {len(rows):,} images of split {arguments.train_split!r}, the shares "
                f"({', '.join(f'{name} {share:.4g}' for name, share in shares.items())}) give none to {role!r}: change "
                "validation_fraction, test_fraction or split_seed."
            )
    return {role: rows.select(found) for role, found in parts.items()}


def describe_held_out(arguments: DataArguments) -> list[str]:
    """A sentence on how the images of each role were held out, for the plan and the model card."""
    names = {role: str(name) for role, (name, _) in arguments.splits().items()}
    return [
        f"The images of '{names[role]}' are about {share:.4g} of the images of '{arguments.train_split}'. A hash of "
        f"each picture chose them ({FRACTION_KEYS[role]} {share:.4g}, split_seed {arguments.split_seed}) before "
        "training, and the model was not trained on them."
        for role, share in arguments.held_out().items()
    ]


def check_shared(images: Mapping[str, Sequence[Any]], names: Mapping[str, str]) -> None:
    """Check that no two roles share an image.

    Args:
        images: What identifies each role's images, such as their digests; None is unknown.
        names: The name of each role's split.

    Raises:
        RecipeError: Two roles share images. The message says how many, names one, and says what to do.
    """
    for role, other, shared in _find_shared(images):
        row = next(row for row, image in enumerate(images[role]) if image in shared)
        same = images[other].index(images[role][row])
        count = f"{len(shared):,} of {len(set(images[role])):,}"
        raise RecipeError(
            f"{count} images of {role} ({names[role]!r}) are also in {other} ({names[other]!r}): for example, image "
            f"{row} of {role} is image {same} of {other}. Scores on training images do not tell how well a model "
            "describes new ones. Name splits that differ, take slices ('train[:90%]' and 'train[90%:]'), or set "
            "validation_fraction and test_fraction. To go on, set allow_shared_images to true."
        )


def describe_shared(images: Mapping[str, Sequence[Any]], names: Mapping[str, str]) -> list[str]:
    """A sentence for each pair of roles that shares images, for the model card."""
    return [
        f"{len(shared):,} of the {len(set(images[role])):,} images of {role} ('{names[role]}') are also images of "
        f"{other} ('{names[other]}')."
        for role, other, shared in _find_shared(images)
    ]


def find_shared_pictures(train: Any, scored: Any) -> list[str]:
    """A sentence for each scored data set of a script with pictures to train on, by embedded bytes or path.

    Only tables of `datasets` are compared, and embedded pictures only up to `MAX_COMPARED_BYTES`.

    Args:
        train: Rows to train on.
        scored: Rows to score, by name.
    """
    tables = {"train_dataset": train, **scored}
    images = {name: each.select_columns(["image"]) for name, each in tables.items() if isinstance(each, Dataset)}
    if (
        len(images) < 2
        or "train_dataset" not in images
        or sum(map(embedded_bytes, images.values())) > MAX_COMPARED_BYTES
    ):
        return []
    keys = {name: set(filter(None, picture_keys(each))) for name, each in images.items()}
    shared = {name: len(each & keys["train_dataset"]) for name, each in keys.items() if name != "train_dataset"}
    return [
        f"{count:,} of the {len(keys[name]):,} images of {name} are also images of train_dataset: scores on training "
        "images do not tell how well a model describes new ones."
        for name, count in shared.items()
        if count
    ]


def _find_shared(images: Mapping[str, Sequence[Any]]) -> list[tuple[str, str, set[Any]]]:
    """The images that each pair of roles shares, if any."""
    known = {role: {image for image in each if image is not None} for role, each in images.items()}
    roles = list(known)
    pairs = [(role, other) for number, role in enumerate(roles) for other in roles[:number]]
    return [(role, other, known[role] & known[other]) for role, other in pairs if known[role] & known[other]]
