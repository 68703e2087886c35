"""Rows to pairs of an image and a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.pixels import read_pixels
from blip_recipe.models.processors import resize_pixels, stack_pixels
from blip_recipe.retrieval.scoring import tokenize_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import BlipProcessor


def image_ids(captions: Iterable[Sequence[str]]) -> torch.Tensor:
    """A number for each image, `(images,)`: the row of the first one with the very same captions.

    Nobody could say which of them a text belongs to, so they are neither each other's negatives nor wrong finds. Among
    photographs there are none; drawn scenes may differ in what no caption says.
    """
    first: dict[tuple[str, ...], int] = {}
    return torch.tensor([first.setdefault(tuple(each), row) for row, each in enumerate(captions)])


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
        image_processor = self.processor.image_processor
        pixels = [row["image"] if isinstance(row["image"], torch.Tensor) else read_pixels(row["image"]) for row in rows]
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            "pixel_values": stack_pixels([resize_pixels(each, image_processor) for each in pixels]),
            # Cleaned by the data set, where the recipe asks for it.
            **tokenize_texts(
                self.processor.tokenizer,
                [row["captions"][0] for row in rows],
                normalize=False,
                max_length=self.max_length,
            ),
        }
