"""Run the image encoder, and change its input size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration

CACHE_BYTES = 32 * 2**20
"""The widest activations that are computed at once on a CPU: about the last cache of a processor."""


def encode_images(
    vision_model: nn.Module, pixel_values: torch.Tensor | None, *, interpolate_pos_encoding: bool = False
) -> torch.Tensor:
    """Encode `pixel_values` `(images, 3, height, width)` to `(images, patches, width)`.

    On a CPU, without gradients, only as many images are encoded at once as fit its cache: 4 of 384 x 384 at base size.
    More at once take longer for each image, and more memory for activations. `python -m benchmarks.folder` shows it:
    its encoder alone does not split a batch.

    Raises:
        ValueError: There are no `pixel_values`.
    """
    if pixel_values is None:
        raise ValueError("There are no pixel_values: expected (images, 3, height, width), or image_embeds.")
    at_once = len(pixel_values)
    on_cpu = pixel_values.device.type == "cpu" and not torch.compiler.is_compiling()
    # Processes that share weights (`DTensor`) must all call the encoder equally often.
    if on_cpu and not torch.is_grad_enabled() and not hasattr(next(vision_model.parameters()), "device_mesh"):
        config = cast("Any", vision_model.config)
        patches = (pixel_values.shape[-2] // config.patch_size) * (pixel_values.shape[-1] // config.patch_size) + 1
        at_once = CACHE_BYTES // (patches * config.intermediate_size * pixel_values.element_size())
    parts = [
        vision_model(pixel_values=part, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state
        for part in pixel_values.split(max(at_once, 1))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def resize_position_embeddings(model: BlipForConditionalGeneration, image_size: int) -> None:
    """Interpolate the position embeddings, in place, to pictures of `image_size` x `image_size` pixels.

    As in the original repository (`interpolate_pos_embed` in `models/vit.py`): bicubic, without the class position.

    Raises:
        RecipeError: `image_size` is not a multiple of the patch size.
    """
    vision = model.vision_model
    embeddings, config = vision.embeddings, cast("Any", vision.config)
    if image_size % config.patch_size:
        raise RecipeError(
            f"image_size is {image_size}: expected a multiple of the patch size, {config.patch_size} pixels."
        )
    old, new = config.image_size // config.patch_size, image_size // config.patch_size
    if old != new:
        positions = embeddings.position_embedding.data
        grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)
        embeddings.position_embedding = nn.Parameter(torch.cat([positions[:, :1], grid], dim=1))
        embeddings.num_patches, embeddings.num_positions = new * new, new * new + 1
    for part in (embeddings, config, model.config.vision_config):
        part.image_size = image_size
