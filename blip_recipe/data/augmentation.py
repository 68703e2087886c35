"""The training augmentation of the original BLIP, drawn from a numpy generator.

Source: `transform_train` in `data/__init__.py` and `RandomAugment(2, 5)` in `transform/randaugment.py` of the original
repository. Its colour operations are those that no caption depends on; at level 5 of 10 brightness and sharpness have a
factor of 5 / 10 * 1.8 + 0.1 = 1, so that they, as `Identity`, change nothing. They are drawn all the same, because how
often the others are drawn depends on it.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Resampling, Transform = Image.Resampling, Image.Transform

CROP_SCALE = (0.5, 1.0)
"""Share of the picture's area that a crop keeps."""

CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop (torchvision's default, which the original uses)."""

CROP_ATTEMPTS = 10

OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Brightness",
    "Sharpness",
    "Equalize",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)
OPERATIONS_DRAWN = 2
OPERATION_PROBABILITY = 0.5
LEVEL = 5 / 10
ENHANCEMENT = LEVEL * 1.8 + 0.1
SHEAR = LEVEL * 0.3
TRANSLATION = LEVEL * 10
"""Pixels, whatever the picture's size."""
ROTATION = LEVEL * 30
"""Degrees."""
FILL = (128, 128, 128)


def augment(image: Image.Image, image_size: int, rng: np.random.Generator) -> Image.Image:
    """A random crop of an RGB `image`, perhaps mirrored, after two random operations: `(image_size, image_size)`."""
    box = draw_crop(image.width, image.height, rng)
    image = image.resize((image_size, image_size), Resampling.BICUBIC, box=box)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for operation in rng.choice(OPERATIONS, OPERATIONS_DRAWN):
        if rng.random() < OPERATION_PROBABILITY:
            image = apply_operation(image, operation, rng)
    return image


def draw_crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The box (left, upper, right, lower) of a random crop.

    As torchvision's `RandomResizedCrop.get_params`: an area and a ratio (uniform in its logarithm) that fit within ten
    attempts, else the largest central crop whose ratio is allowed.
    """
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            upper = int(rng.integers(height - crop_height + 1))
            return left, upper, left + crop_width, upper + crop_height
    crop_width = min(width, max(1, round(height * CROP_RATIO[1])))
    crop_height = min(height, max(1, round(width / CROP_RATIO[0])))
    left, upper = (width - crop_width) // 2, (height - crop_height) // 2
    return left, upper, left + crop_width, upper + crop_height


def apply_operation(image: Image.Image, operation: str, rng: np.random.Generator) -> Image.Image:
    """`image` through one of `OPERATIONS`; the direction of a geometric one is drawn. Uncovered corners are grey."""
    sign = 1 if rng.random() < 0.5 else -1
    if operation == "AutoContrast":
        return ImageOps.autocontrast(image)
    if operation == "Equalize":
        return ImageOps.equalize(image)
    if operation == "Brightness":
        return ImageEnhance.Brightness(image).enhance(ENHANCEMENT)
    if operation == "Sharpness":
        return ImageEnhance.Sharpness(image).enhance(ENHANCEMENT)
    if operation == "ShearX":
        return _warp(image, (1, sign * SHEAR, 0, 0, 1, 0))
    if operation == "ShearY":
        return _warp(image, (1, 0, 0, sign * SHEAR, 1, 0))
    if operation == "TranslateX":
        return _warp(image, (1, 0, sign * TRANSLATION, 0, 1, 0))
    if operation == "TranslateY":
        return _warp(image, (1, 0, 0, 0, 1, sign * TRANSLATION))
    if operation == "Rotate":
        return image.rotate(sign * ROTATION, Resampling.BILINEAR, fillcolor=FILL)
    return image


def _warp(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Transform.AFFINE, matrix, Resampling.BILINEAR, fillcolor=FILL)
