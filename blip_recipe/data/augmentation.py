"""The training augmentation of the original BLIP on bytes, drawn from a numpy generator.

Source: `transform_train` in `data/__init__.py` and `RandomAugment(2, 5)` in `transform/randaugment.py` of the original
repository. Its colour operations are those that no caption depends on; at level 5 of 10 brightness and sharpness have a
factor of 5 / 10 * 1.8 + 0.1 = 1, so that they, as `Identity`, change nothing. They are drawn all the same, because how
often the others are drawn depends on it.

Pictures are uint8 `(3, height, width)`. A crop is resized with a bicubic filter and antialiasing, which differs from
Pillow's by rounding (0.024 of 255 levels on average over 86 photographs, 10 at most).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from PIL import ImageOps
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from blip_recipe.data.pixels import to_image, to_pixels

CROP_SCALE = (0.5, 1.0)
"""Share of the picture's area that a crop keeps."""

CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop (torchvision's default, which the original uses)."""

CROP_ATTEMPTS = 10

LEVEL = 5 / 10
SHEAR = LEVEL * 0.3
TRANSLATION = round(LEVEL * 10)
"""Pixels, whatever the picture's size."""
ROTATION = math.radians(LEVEL * 30)
FILL = 128

WARPS = ("ShearX", "ShearY", "Rotate")
MOVED_AXES = {"TranslateX": 2, "TranslateY": 1}
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


def augment(pixels: torch.Tensor, image_size: int, rng: np.random.Generator) -> torch.Tensor:
    """A random crop, perhaps mirrored, after two random operations: `(3, image_size, image_size)`."""
    left, upper, right, lower = draw_crop(pixels.shape[2], pixels.shape[1], rng)
    # Colours side by side, as the fast filter wants them: it would take twice as long for a copy of its own.
    crop = pixels[:, upper:lower, left:right].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    pixels = resize(crop, [image_size, image_size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    if rng.random() < 0.5:
        pixels = pixels.flip(2)
    for operation in rng.choice(OPERATIONS, OPERATIONS_DRAWN):
        if rng.random() < OPERATION_PROBABILITY:
            pixels = apply_operation(pixels, operation, rng)
    return pixels


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


def apply_operation(pixels: torch.Tensor, operation: str, rng: np.random.Generator) -> torch.Tensor:
    """`pixels` through one of `OPERATIONS`; the direction of a geometric one is drawn. Uncovered corners are grey."""
    sign = 1 if rng.random() < 0.5 else -1
    if operation in WARPS:
        return _warp(pixels, operation, sign)
    if operation in MOVED_AXES:
        return _move(pixels, MOVED_AXES[operation], sign * TRANSLATION)
    if operation == "AutoContrast":
        return to_pixels(ImageOps.autocontrast(to_image(pixels)))
    if operation == "Equalize":
        return to_pixels(ImageOps.equalize(to_image(pixels)))
    return pixels


def _move(pixels: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """What lies `step` pixels further along `axis`."""
    size = pixels.shape[axis]
    moved, uncovered = pixels.roll(-step, axis), min(abs(step), size)
    moved.narrow(axis, size - uncovered if step > 0 else 0, uncovered).fill_(FILL)
    return moved


def _warp(pixels: torch.Tensor, operation: str, sign: int) -> torch.Tensor:
    """Bilinear, as Pillow's `transform`, which rounds down where this rounds to the nearest."""
    grid, inside, fill = _warp_grid(operation, sign, pixels.shape[1], pixels.shape[2])
    warped = grid_sample(pixels.contiguous()[None].float(), grid, padding_mode="border", align_corners=False)[0]
    return warped.add_(0.5).mul_(inside).add_(fill).to(torch.uint8)


@lru_cache(maxsize=2 * len(WARPS))
def _warp_grid(operation: str, sign: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is the same for all pictures of a size.

    Where each pixel comes from, for `grid_sample`; 1 where that is inside the picture, else 0; what to add outside.

    Shears keep the upper left corner in its place, rotations the middle.
    """
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    if operation == "ShearX":
        x = x + sign * SHEAR * y
    elif operation == "ShearY":
        y = y + sign * SHEAR * x
    else:
        x, y = x - width / 2, y - height / 2
        cos, sin = math.cos(ROTATION), sign * math.sin(ROTATION)
        x, y = cos * x - sin * y + width / 2, sin * x + cos * y + height / 2
    inside = ((x >= 0) & (x < width) & (y >= 0) & (y < height)).float()
    return torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=-1)[None], inside, FILL * (1 - inside)
