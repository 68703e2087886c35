"""The rows of a split as a trainer sees them: pictures opened and augmented, captions drawn and cleaned.

Every random choice comes from a generator seeded with (seed, epoch, row). It depends neither on the number of worker
processes nor on what was read before: a resumed run goes on as if it had never stopped, and runs with different numbers
of workers are equal.

The epoch is told by accelerate, which calls `set_epoch` on the data set of a loader at the start of each pass. It is
kept in shared memory: workers that live on between epochs (`dataloader_persistent_workers`) hold copies of this object,
and would otherwise repeat the first epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from blip_recipe.data.augmentation import augment
from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.pixels import read_pixels
from blip_recipe.data.resized_cache import cache_folder, resize_beforehand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from transformers import ProcessorMixin

    from blip_recipe.data.embeddings import EmbeddingStore
    from blip_recipe.recipe.parsing import DataArguments


class CaptionDataset(torch.utils.data.Dataset):
    """Rows of `load_split` as `{"row", "image", "captions"}`.

    Args:
        rows: `image`, `image_id`, `captions`, as `load_split` gives them.
        image_size: Side of an augmented picture in pixels.
        captions_per_image: How many captions of an image are drawn, without replacement; None is all. An image that has
            fewer gives all of them.
        normalize_captions: Whether captions are cleaned as the original's (`normalize_caption`). `rows` keep them raw.
        augmentation: `"blip"` is the original's (`augment`), `"none"` leaves pictures in their own size.
        seed: What random choices start from.
        resized: Files to read pictures from, by row number (`resize_beforehand`), in place of those in `rows`.
    """

    def __init__(
        self,
        rows: Dataset,
        *,
        image_size: int,
        captions_per_image: int | None,
        normalize_captions: bool,
        augmentation: Literal["blip", "none"],
        seed: int,
        resized: Mapping[int, str] | None = None,
    ) -> None:
        self.rows = rows
        self.resized = resized or {}
        self._captions = rows.select_columns(["captions"])
        self.image_size = image_size
        self.captions_per_image = captions_per_image
        self.normalize_captions = normalize_captions
        self.augmentation = augmentation
        self.seed = seed
        self.embeddings: tuple[EmbeddingStore, list[str]] | None = None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw the choices of `epoch` from now on, in the processes of workers too."""
        self._epoch.fill_(epoch)

    def use_embeddings(self, store: EmbeddingStore, keys: list[str]) -> None:
        """Give the embeddings of rows, kept in `store` under `keys`, in place of their pictures."""
        self.embeddings = store, keys

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Row number, picture (uint8 `(3, height, width)`; augmented: `image_size` square) and captions of a row.

        With `use_embeddings`, `image_embeds` `(patches, width)` in place of the picture.

        Raises:
            BadImageError: The picture cannot be read.
        """
        rng = np.random.default_rng([self.seed, int(self._epoch), row])
        if self.embeddings:
            store, keys = self.embeddings
            captions = self._captions[row]["captions"]
            captions = draw_captions(captions, self.captions_per_image, self.normalize_captions, rng)
            return {"row": row, "image_embeds": store.load(keys[row]), "captions": captions}
        resized = self.resized.get(row)
        # Megapixels that are not looked at are not taken from the table either.
        record = (self._captions if resized else self.rows)[row]
        captions = draw_captions(record["captions"], self.captions_per_image, self.normalize_captions, rng)
        image = read_pixels(resized or record["image"])
        if self.augmentation == "blip":
            image = augment(image, self.image_size, rng)
        return {"row": row, "image": image, "captions": captions}


def draw_captions(captions: list[str], count: int | None, normalize: bool, rng: np.random.Generator) -> list[str]:
    """`count` of the captions of an image, or all of them, cleaned on request."""
    if count is not None and count < len(captions):
        captions = [captions[number] for number in rng.choice(len(captions), count, replace=False)]
    return [normalize_caption(caption) for caption in captions] if normalize else captions


def caption_datasets(
    splits: Mapping[str, Dataset], arguments: DataArguments, processor: ProcessorMixin, seed: int
) -> dict[str, CaptionDataset]:
    """The splits of `load_splits` for a trainer: `train` as the recipe says, the others whole and as they are.

    `eval_loss` is over all captions of a split, so scored splits never draw some, and see every picture unchanged; only
    training reads large pictures from the recipe's `image_cache`.

    Raises:
        RecipeError: Pictures cannot be kept there.
    """
    image_size = processor.image_processor.size["height"]
    folder = cache_folder(arguments.image_cache)
    return {
        role: CaptionDataset(
            rows,
            image_size=image_size,
            captions_per_image=arguments.captions_per_image if role == "train" else None,
            normalize_captions=arguments.normalize_captions,
            augmentation=arguments.augmentation if role == "train" else "none",
            seed=seed,
            resized=resize_beforehand(rows, image_size, folder) if folder and role == "train" else None,
        )
        for role, rows in splits.items()
    }
