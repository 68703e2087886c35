"""Rows as a trainer sees them: pictures opened and augmented, texts drawn and cleaned.

Every random choice comes from a generator seeded with (seed, epoch, row). It depends neither on the number of worker
processes nor on what was read before: a resumed run goes on as if it had never stopped, and runs with different numbers
of workers are equal.

accelerate calls `set_epoch` on the data set of a loader at the start of each pass. The epoch is kept in shared memory:
workers that live on between epochs (`dataloader_persistent_workers`) hold copies of this object, and would otherwise
repeat the first epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from blip_recipe.data.augmentation import augment
from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.pixels import read_pixels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blip_recipe.data.convert import Rows
    from blip_recipe.data.embeddings import EmbeddingStore

Augmentation = Literal["blip", "none"]


class PictureDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows with a picture each, read and augmented anew each epoch.

    Args:
        rows: With a column `image`; they stay as they are written.
        image_size: Side of an augmented picture in pixels.
        augmentation: `"blip"` is the original's (`augment`), `"none"` leaves pictures in their own size.
        seed: What random choices start from.
        resized: Files to read pictures from, by row number (`cache_resized_pictures`), in place of those in `rows`.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        image_size: int,
        augmentation: Augmentation,
        seed: int,
        resized: Mapping[int, str] | None = None,
    ) -> None:
        self.rows = rows
        self.image_size, self.augmentation, self.seed = image_size, augmentation, seed
        self.resized = resized or {}
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw the choices of `epoch` from now on, in the processes of workers too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def generator(self, row: int) -> np.random.Generator:
        """The random numbers of a row in this epoch."""
        return np.random.default_rng([self.seed, int(self._epoch), row])

    def read_picture(self, image: Any, rng: np.random.Generator) -> torch.Tensor:
        """A picture as uint8 `(3, height, width)`; augmented: `image_size` square.

        Raises:
            BadImageError: It cannot be read.
        """
        pixels = read_pixels(image)
        return augment(pixels, self.image_size, rng) if self.augmentation == "blip" else pixels


class CaptionDataset(PictureDataset):
    """Rows of images and captions as `{"row", "image", "captions"}`.

    Args:
        rows: `image`, `image_id`, `captions`.
        captions_per_image: How many captions of an image are drawn, without replacement; None is all. An image that has
            fewer gives all of them.
        normalize_captions: Whether captions are cleaned as the original's (`normalize_caption`). `rows` keep them raw.
        kwargs: As `PictureDataset`'s.
    """

    def __init__(self, rows: Rows, *, captions_per_image: int | None, normalize_captions: bool, **kwargs: Any) -> None:
        super().__init__(rows, **kwargs)
        self._captions = rows.select_columns(["captions"])
        self.captions_per_image, self.normalize_captions = captions_per_image, normalize_captions
        self.embeddings: tuple[EmbeddingStore, list[str]] | None = None

    def use_embeddings(self, store: EmbeddingStore, keys: list[str]) -> None:
        """Give the embeddings of rows, kept in `store` under `keys`, in place of their pictures."""
        self.embeddings = store, keys

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Row number, picture and captions of a row; with `use_embeddings`, `image_embeds` `(patches, width)`.

        Raises:
            BadImageError: The picture cannot be read.
        """
        rng = self.generator(row)
        resized = self.resized.get(row)
        # Megapixels that are not looked at are not taken from the table either.
        record = (self._captions if resized or self.embeddings else self.rows)[row]
        captions = draw_captions(record["captions"], self.captions_per_image, self.normalize_captions, rng)
        if self.embeddings:
            store, keys = self.embeddings
            return {"row": row, "image_embeds": store.load(keys[row]), "captions": captions}
        return {"row": row, "image": self.read_picture(resized or record["image"], rng), "captions": captions}


def draw_captions(captions: list[str], count: int | None, normalize: bool, rng: np.random.Generator) -> list[str]:
    """`count` of the captions of an image, or all of them, cleaned on request."""
    if count is not None and count < len(captions):
        captions = [captions[number] for number in rng.choice(len(captions), count, replace=False)]
    return [normalize_caption(caption) for caption in captions] if normalize else captions
