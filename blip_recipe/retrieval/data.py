"""Images with captions as the matcher's trainer reads them, and which images are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.training.datasets import caption_dataset

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import BlipProcessor

    from blip_recipe.data.dataset import CaptionDataset
    from blip_recipe.training.training_arguments import BlipTrainingArguments


def build_dataset(
    dataset: Any, args: BlipTrainingArguments, processor: BlipProcessor, *, training: bool
) -> CaptionDataset:
    """Any data set of images with captions, of which training draws one an image.

    Raises:
        RecipeError: Its columns are not known, or hold something else.
    """
    return caption_dataset(dataset, args, processor, training=training, captions_per_image=1)


def image_ids(captions: Iterable[Sequence[str]]) -> torch.Tensor:
    """A number for each image, `(images,)`: the row of the first one with the very same captions.

    Nobody could say which of them a text belongs to, so they are neither each other's negatives nor wrong finds. Among
    photographs there are none; drawn scenes may differ in what no caption says.
    """
    first: dict[tuple[str, ...], int] = {}
    return torch.tensor([first.setdefault(tuple(each), row) for row, each in enumerate(captions)])
