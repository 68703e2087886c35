"""Rows to pairs of an image and a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.pixels import read_resized
from blip_recipe.retrieval.scoring import tokenize_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import BlipProcessor


@dataclass
class PairCollator:
    """Batches rows of `CaptionDataset`: each image with the first of its captions, the only one that training draws.

    Args:
        processor: BLIP's image processor and tokenizer.
        max_length: Longest text in tokens.
    """

    processor: BlipProcessor
    max_length: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of `rows`: each `row`, `image` of any size (what `read_pixels` gives, or takes), and `captions`.

        Returns:
            `row` `(images,)`, the numbers of images; `pixel_values` `(images, 3, height, width)` of bytes; `input_ids`
            and `attention_mask` `(images, tokens)`.
        """
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            "pixel_values": read_resized([row["image"] for row in rows], self.processor.image_processor),
            # Cleaned by the data set, where the recipe asks for it.
            **tokenize_texts(
                self.processor.tokenizer,
                [row["captions"][0] for row in rows],
                normalize=False,
                max_length=self.max_length,
            ),
        }
