"""Build the data sets of retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blip_recipe.training.datasets import caption_dataset

if TYPE_CHECKING:
    from transformers import BlipProcessor

    from blip_recipe.data.dataset import CaptionDataset
    from blip_recipe.data.streaming import CaptionStream
    from blip_recipe.training.training_arguments import BlipTrainingArguments


def build_dataset(
    dataset: Any, args: BlipTrainingArguments, processor: BlipProcessor, *, training: bool, name: str = "dataset"
) -> CaptionDataset | CaptionStream:
    """Convert a data set of images with captions; training samples one caption per image.

    Raises:
        RecipeError: The columns are unknown or have unexpected types.
    """
    return caption_dataset(dataset, args, processor, training=training, captions_per_image=1, name=name)
