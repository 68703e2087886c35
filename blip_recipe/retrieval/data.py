"""Build the data sets of retrieval, and find images with identical captions."""

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
    dataset: Any, args: BlipTrainingArguments, processor: BlipProcessor, *, training: bool, name: str = "dataset"
) -> CaptionDataset:
    """Convert a data set of images with captions; training samples one caption per image.

    Raises:
        RecipeError: The columns are unknown or have unexpected types.
    """
    return caption_dataset(dataset, args, processor, training=training, captions_per_image=1, name=name)


def image_ids(captions: Iterable[Sequence[str]]) -> torch.Tensor:
    """An id for each image, `(images,)`: the row number of the first image with the same captions.

    Images with the same captions cannot be told apart by texts, so they are neither negatives nor errors of each other.
    This matters for drawn scenes, which may differ in details that no caption mentions, not for photographs.
    """
    first: dict[tuple[str, ...], int] = {}
    return torch.tensor([first.setdefault(tuple(each), row) for row, each in enumerate(captions)])
