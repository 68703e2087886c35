"""Encoded pictures kept on disk: with a frozen image encoder and no augmentation, no epoch needs to encode one again.

One file a picture, named by what the picture is, in a folder named by what encodes it: rows may come in any order, in
any split, from several processes at once, and a run that dies leaves what it has encoded to the next.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import Dataset

from blip_recipe.data.pixels import read_pixels, resize_pixels
from blip_recipe.data.storage import write_atomically
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.cache_folder import cache_folder

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipImageProcessor

    from blip_recipe.data.images import Picture


class EmbeddingStore:
    """What one image encoder, with one preprocessing and in one precision, makes of pictures.

    Args:
        vision_model: The frozen image encoder.
        image_processor: What prepares pictures for it.
        dtype: In which numbers are kept: bfloat16 loses nothing where the decoder computes in it.
    """

    def __init__(self, vision_model: nn.Module, image_processor: BlipImageProcessor, dtype: torch.dtype) -> None:
        config: Any = vision_model.config
        self.shape = ((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)
        self.dtype = dtype
        digest = hashlib.sha256(f"{image_processor.to_json_string()}{dtype}".encode())
        for name, weight in vision_model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
        self.folder = cache_folder("image_embeds", digest.hexdigest()[:32])

    @property
    def bytes_per_image(self) -> int:
        """Size of a kept picture."""
        return math.prod(self.shape) * self.dtype.itemsize

    def path(self, key: str) -> Path:
        """Where the picture `key` is kept."""
        return self.folder / key[:2] / key

    def load(self, key: str) -> torch.Tensor:
        """Embeddings `(patches, width)` of a kept picture, mapped from its file."""
        flat = torch.from_file(str(self.path(key)), size=math.prod(self.shape), dtype=self.dtype)
        return flat.view(self.shape)

    def save(self, key: str, embeds: torch.Tensor) -> None:
        """Keep the embeddings `(patches, width)` of a picture, whole or not at all.

        Raises:
            RecipeError: The disk is full, or cannot be written.
        """
        path = self.path(key)
        try:
            write_atomically(path, embeds.to(self.dtype).contiguous().view(torch.uint8).numpy().tobytes())
        except OSError as error:
            raise RecipeError(
                f"cache_image_embeds: {path.parent} cannot be written ({error}). Set BLIP_RECIPE_CACHE to another, "
                "or leave the key out; what is kept already is used again."
            ) from error

    def holds(self, key: str) -> bool:
        """Whether the picture `key` is kept, whole: a machine that lost its power may leave an empty file."""
        path = self.path(key)
        return path.exists() and path.stat().st_size == self.bytes_per_image

    def check_space(self, images: int) -> None:
        """Refuse to begin what the disk cannot hold, where nothing is kept yet.

        Raises:
            RecipeError: `images` do not fit.
        """
        needed, free = images * self.bytes_per_image, shutil.disk_usage(self.folder).free
        if needed > free and not any(self.folder.iterdir()):
            raise RecipeError(
                f"cache_image_embeds needs {needed / 2**30:.1f} GiB for {images:,} pictures, but {self.folder} has "
                f"{free / 2**30:.1f} GiB left: set BLIP_RECIPE_CACHE to a larger disk, or leave the key out."
            )


class Unencoded(NamedTuple):
    """A row's picture: its key, and its resized bytes `(3, height, width)` unless it is kept already."""

    row: int
    key: str
    pixels: torch.Tensor | None


class PicturesToEncode(Dataset[Unencoded]):
    """The pictures of `rows` numbered `numbers`, read by the workers of a loader."""

    def __init__(self, rows: Any, numbers: range, store: EmbeddingStore, image_processor: BlipImageProcessor) -> None:
        self.rows, self.numbers, self.store, self.image_processor = rows, numbers, store, image_processor

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Unencoded:
        row = self.numbers[index]
        image = self.rows[row]["image"]
        key = picture_key(image)
        if self.store.holds(key):
            return Unencoded(row, key, None)
        return Unencoded(row, key, resize_pixels(read_pixels(image), self.image_processor))


def picture_key(image: Picture) -> str:
    """A name for what the picture is: the hash of its file, or of its pixels where there is no file."""
    if isinstance(image, Mapping) and image.get("bytes") is not None:
        return hashlib.sha256(image["bytes"]).hexdigest()
    path = image.get("path") if isinstance(image, Mapping) else image
    if isinstance(path, (str, os.PathLike)) and Path(path).is_file():
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    pixels = read_pixels(image)
    return hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()).hexdigest()
