"""Change the input size of the image encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration


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
