"""Torch data sets for training: open and augment pictures, draw and clean captions.

Random choices are seeded with (seed, epoch, row). They do not depend on the number of workers or on the rows read
before, so a resumed run and runs with other numbers of workers give the same result.

accelerate calls `set_epoch` at the start of each epoch. The epoch is kept in shared memory, because persistent workers
(`dataloader_persistent_workers`) hold copies of the data set and would otherwise repeat the first epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from blip_recipe.data.augmentation import augment
from blip_recipe.data.captions import MAX_WORDS, captions_id, normalize_caption
from blip_recipe.data.pixels import read_pixels
from blip_recipe.data.rows import PROMPT, has_prompts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blip_recipe.data.convert import Rows
    from blip_recipe.data.embeddings import EmbeddingStore

Augmentation = Literal["blip", "none"]


class PictureDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Base class of data sets with one picture per row, augmented anew in each epoch.

    Args:
        rows: Rows with a column `image`.
        image_size: Side of an augmented picture in pixels.
        augmentation: `"blip"` augments as the original BLIP (`augment`). `"none"` keeps pictures unchanged.
        seed: Seed of the random choices.
        resized: Resized picture files by row number (from `cache_resized_pictures`), read instead of the pictures in
            `rows`.
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
        self.embeddings: tuple[EmbeddingStore, list[str]] | None = None

    def picture_rows(self) -> list[int]:
        """For each row, a row with the same picture."""
        return list(range(len(self)))

    def use_embeddings(self, store: EmbeddingStore, keys: list[str]) -> None:
        """Return cached embeddings instead of pictures: row `i` is stored under `keys[i]`."""
        self.embeddings = store, keys

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the random choices, also in worker processes."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def generator(self, row: int) -> np.random.Generator:
        """The random number generator of a row in this epoch."""
        return np.random.default_rng([self.seed, int(self._epoch), row])

    def read_picture(self, image: Any, rng: np.random.Generator) -> torch.Tensor:
        """Read a picture as uint8 `(3, height, width)`; with augmentation, `(3, image_size, image_size)`.

        Raises:
            BadImageError: The picture cannot be read.
        """
        pixels = read_pixels(image)
        return augment(pixels, self.image_size, rng) if self.augmentation == "blip" else pixels


class CaptionDataset(PictureDataset):
    """Images with captions, as items `{"row", "image", "captions", "captions_id"}`.

    Items also have a `prompt` if rows have prompts of their own. `captions_id` tells whether two images have the same
    captions (see `captions_id`).

    Args:
        rows: Rows of `image`, `image_id` and `captions`, and perhaps `prompt`.
        captions_per_image: How many captions per image to draw without replacement; None takes all. An image with
            fewer captions gives all of them.
        normalize_captions: Whether to clean captions with `normalize_caption`.
        max_words: The number of words that cleaning keeps; None for all.
        kwargs: Arguments of `PictureDataset`.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        captions_per_image: int | None,
        normalize_captions: bool,
        max_words: int | None = MAX_WORDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(rows, **kwargs)
        self.has_prompts = has_prompts(rows)
        self._captions = rows.select_columns(["captions", *([PROMPT] if self.has_prompts else [])])
        self.captions_per_image = captions_per_image
        self.normalize_captions, self.max_words = normalize_captions, max_words

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Get the row number, the picture and the captions of a row.

        After `use_embeddings`, `image_embeds` `(patches, width)` replaces the picture.

        Raises:
            BadImageError: The picture cannot be read.
        """
        rng = self.generator(row)
        resized = self.resized.get(row)
        # Do not load the picture from the table if it is not used.
        record = (self._captions if resized or self.embeddings else self.rows)[row]
        texts = draw_texts(record, self.captions_per_image, self.normalize_captions, self.max_words, rng)
        item = {"row": row, **texts}
        if self.embeddings:
            store, keys = self.embeddings
            return {**item, "image_embeds": store.load(keys[row])}
        return {**item, "image": self.read_picture(resized or record["image"], rng)}


def draw_texts(
    record: Mapping[str, Any], count: int | None, normalize: bool, max_words: int | None, rng: np.random.Generator
) -> dict[str, Any]:
    """Draw the texts of an image.

    Args:
        record: Its `captions`, and its `prompt` if it has one.
        count: How many captions to draw; None: all.
        normalize: Whether to clean captions with `normalize_caption`.
        max_words: The number of words that cleaning keeps; None for all.
        rng: The random number generator of the row.

    Returns:
        `captions`, those drawn; `captions_id`, that of all captions; and `prompt`, if the record has one.
    """
    captions = record["captions"]
    if count is not None and count < len(captions):
        captions = [captions[number] for number in rng.choice(len(captions), count, replace=False)]
    return {
        "captions": [normalize_caption(caption, max_words) for caption in captions] if normalize else captions,
        "captions_id": captions_id(record["captions"]),
        **({PROMPT: record[PROMPT]} if PROMPT in record else {}),
    }
