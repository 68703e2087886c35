"""The original BLIP's training augmentation for uint8 tensors.

Source: `transform_train` in `data/__init__.py` and `RandomAugment(2, 5)` in `transform/randaugment.py` of the original
repository. Brightness and sharpness at level 5 of 10 have a factor of 5 / 10 * 1.8 + 0.1 = 1, so they change nothing,
like `Identity`. They are still drawn, because they set the probability of the other operations.

Pictures are uint8 `(3, height, width)`. Crops are resized with antialiased bicubic interpolation. The result differs
from Pillow's by rounding: 0.024 of 255 levels on average over 86 photographs, 10 at most.
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
"""Range of the crop's share of the picture's area."""

CROP_RATIO = (3 / 4, 4 / 3)
"""Range of the crop's width over its height: torchvision's default, as in the original."""

CROP_ATTEMPTS = 10

LEVEL = 5 / 10
SHEAR = LEVEL * 0.3
TRANSLATION = round(LEVEL * 10)
"""In pixels, for pictures of any size."""
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
    """Crop, resize and flip a picture at random, then apply two random operations.

    Args:
        pixels: uint8 `(3, height, width)`.
        image_size: Side of the result in pixels.
        rng: The random number generator.

    Returns:
        uint8 `(3, image_size, image_size)`.
    """
    left, upper, right, lower = draw_crop(pixels.shape[2], pixels.shape[1], rng)
    # Channels last: torchvision's fast resize needs this layout and would take twice as long to copy by itself.
    crop = pixels[:, upper:lower, left:right].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    pixels = resize(crop, [image_size, image_size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    if rng.random() < 0.5:
        pixels = pixels.flip(2)
    for operation in rng.choice(OPERATIONS, OPERATIONS_DRAWN):
        if rng.random() < OPERATION_PROBABILITY:
            pixels = apply_operation(pixels, operation, rng)
    return pixels


def draw_crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box (left, upper, right, lower) of a random crop.

    Same as torchvision's `RandomResizedCrop.get_params`: draw an area and a log-uniform ratio up to ten times until
    they fit, else take the largest central crop with an allowed ratio.
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
    """Apply one of `OPERATIONS`. Geometric operations draw a direction and fill uncovered corners with grey."""
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
    """Shift the picture by `-step` pixels along `axis`."""
    size = pixels.shape[axis]
    moved, uncovered = pixels.roll(-step, axis), min(abs(step), size)
    moved.narrow(axis, size - uncovered if step > 0 else 0, uncovered).fill_(FILL)
    return moved


def _warp(pixels: torch.Tensor, operation: str, sign: int) -> torch.Tensor:
    """Shear or rotate with bilinear interpolation, as Pillow's `transform`, but round to nearest instead of down."""
    grid, inside, fill = _warp_grid(operation, sign, pixels.shape[1], pixels.shape[2])
    warped = grid_sample(pixels.contiguous()[None].float(), grid, padding_mode="border", align_corners=False)[0]
    return warped.add_(0.5).mul_(inside).add_(fill).to(torch.uint8)


@lru_cache(maxsize=2 * len(WARPS))
def _warp_grid(operation: str, sign: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sampling grid for `grid_sample`, the mask of pixels inside the picture (1 or 0), and the fill outside.

    They depend only on the size, so they are cached. Shears keep the upper left corner in place, rotations the center.
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
