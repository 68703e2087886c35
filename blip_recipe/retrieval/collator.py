"""Collate images and texts into pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.pixels import read_resized
from blip_recipe.models.matching import tokenize_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import BlipProcessor


@dataclass
class PairCollator:
    """Batches rows of `CaptionDataset`: each image with its first caption (training rows have one).

    Args:
        processor: The image processor and tokenizer.
        max_length: Maximum text length in tokens.
    """

    processor: BlipProcessor
    max_length: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `rows` of `row`, `image` (of any size), `captions` and `captions_id`.

        Returns:
            `row` and `captions_id`, each `(images,)`; `pixel_values` `(images, 3, height, width)` in uint8, which the
            trainer normalises on the device, or `image_embeds` `(images, patches, width)` if the rows have them; and
            `input_ids` and `attention_mask`, each `(images, tokens)`.
        """
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            "captions_id": torch.tensor([row["captions_id"] for row in rows]),
            **self._images(rows),
            # The data set cleans the texts.
            **tokenize_texts(
                self.processor.tokenizer,
                [row["captions"][0] for row in rows],
                normalize=False,
                max_length=self.max_length,
            ),
        }

    def _images(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "image_embeds" in rows[0]:
            return {"image_embeds": torch.stack([row["image_embeds"] for row in rows])}
        return {"pixel_values": read_resized([row["image"] for row in rows], self.processor.image_processor)}
