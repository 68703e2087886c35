"""Cache image embeddings on disk, for training with a frozen image encoder and no augmentation.

Each picture has one file, named by a hash of the picture, in a folder named by a hash of the encoder. So splits,
processes and runs can share the cache, and an interrupted run keeps its work.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
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
    """The cache of one image encoder with one image processor and one dtype.

    Args:
        vision_model: The frozen image encoder.
        image_processor: Its image processor.
        dtype: The dtype of stored embeddings. bfloat16 loses nothing if the decoder computes in bfloat16.
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
        """Size of the embeddings of one picture in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def path(self, key: str) -> Path:
        """The file of the picture `key`."""
        return self.folder / key[:2] / key

    def load(self, key: str) -> torch.Tensor:
        """Memory-map the embeddings `(patches, width)` of a stored picture."""
        flat = torch.from_file(str(self.path(key)), size=math.prod(self.shape), dtype=self.dtype)
        return flat.view(self.shape)

    def save(self, key: str, embeds: torch.Tensor) -> None:
        """Write the embeddings `(patches, width)` of a picture atomically.

        Raises:
            RecipeError: The disk is full or not writable.
        """
        path = self.path(key)
        try:
            write_atomically(path, embeds.to(self.dtype).contiguous().view(torch.uint8).numpy().tobytes())
        except OSError as error:
            raise RecipeError(
                f"cache_image_embeds: {path.parent} cannot be written ({error}). Set BLIP_RECIPE_CACHE to another "
                "folder, or turn cache_image_embeds off. Embeddings that are cached already are used again."
            ) from error

    def holds(self, key: str) -> bool:
        """Whether the picture `key` is stored with the right size; a power failure may leave an empty file."""
        path = self.path(key)
        return path.exists() and path.stat().st_size == self.bytes_per_image

    def check_space(self, images: int) -> None:
        """Check that the disk has room for `images` pictures, unless the cache has files already.

        Raises:
            RecipeError: The disk is too small.
        """
        needed, free = images * self.bytes_per_image, shutil.disk_usage(self.folder).free
        if needed > free and not any(self.folder.iterdir()):
            raise RecipeError(
                f"cache_image_embeds needs {needed / 2**30:.1f} GiB for {images:,} pictures, but {self.folder} has "
                f"{free / 2**30:.1f} GiB left: set BLIP_RECIPE_CACHE to a folder on a larger disk, or turn "
                "cache_image_embeds off."
            )


class Unencoded(NamedTuple):
    """A row's picture: its key, and its resized pixels `(3, height, width)`, or None if it is stored already."""

    row: int
    key: str
    pixels: torch.Tensor | None


class PicturesToEncode(Dataset[Unencoded]):
    """Data set of the pictures to encode: the rows `numbers` of `rows`."""

    def __init__(
        self, rows: Any, numbers: Sequence[int], store: EmbeddingStore, image_processor: BlipImageProcessor
    ) -> None:
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
    """The hash of a picture's file, or of its pixels if there is no file."""
    if isinstance(image, Mapping) and image.get("bytes") is not None:
        return hashlib.sha256(image["bytes"]).hexdigest()
    path = image.get("path") if isinstance(image, Mapping) else image
    if isinstance(path, (str, os.PathLike)) and Path(path).is_file():
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    pixels = read_pixels(image)
    return hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()).hexdigest()
