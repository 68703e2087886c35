"""Keep features of pictures and texts, so that a split is encoded once however often it is scored."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from blip_recipe.data.images import Picture, digest, is_url
from blip_recipe.metrics.scores import ScoredSet

MAX_FEATURES = 200_000
"""Features that are kept: 400 MB at a width of 512."""


class FeatureCache:
    """Features by key, the last used of them."""

    def __init__(self, limit: int = MAX_FEATURES) -> None:
        self.limit = limit
        self._kept: dict[Hashable, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def look_up(self, keys: Sequence[Hashable], encode: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        """The features of items `(items, width)`, on the CPU in float32.

        Args:
            keys: A key for each item. Items with equal keys have equal features.
            encode: Computes the features `(numbers, width)` of the items with these numbers.
        """
        new = {key: number for number, key in enumerate(keys) if key not in self._kept}
        if new:
            self._kept |= zip(new, encode(list(new.values())).float().cpu(), strict=True)
        found = torch.stack([self._kept[key] for key in keys])
        for key in dict.fromkeys(keys):  # the last used are last
            self._kept[key] = self._kept.pop(key)
        for key in list(self._kept)[: max(0, len(self._kept) - self.limit)]:
            del self._kept[key]
        return found


class PicturesInOrder(Sequence[Any]):
    """The pictures of a set in the order of its images, each read when it is asked for."""

    def __init__(self, scored: ScoredSet) -> None:
        assert scored.pictures is not None
        self._pictures, self._image_ids = scored.pictures, scored.image_ids

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, number: Any) -> Any:
        return self._pictures[self._image_ids[number]]


def picture_key(picture: Picture) -> Hashable:
    """A key that equal pictures share; a file is known by its name, size and time of change."""
    if isinstance(picture, Mapping):
        return picture_key(picture["path"] if picture.get("bytes") is None else picture["bytes"])
    if isinstance(picture, bytes):
        return digest(picture)
    if isinstance(picture, (str, PathLike)):
        if is_url(picture) or not Path(picture).is_file():
            return str(picture)
        status = Path(picture).stat()
        return str(picture), status.st_size, status.st_mtime_ns
    pixels = np.asarray(picture) if isinstance(picture, Image.Image) else picture
    return None if pixels is None else (digest(pixels.tobytes()), pixels.shape)
