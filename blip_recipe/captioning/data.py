"""Build the data sets of captioning."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from blip_recipe.data.captions import join_prompt
from blip_recipe.data.rows import PROMPT
from blip_recipe.training.datasets import caption_dataset

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BlipProcessor, PreTrainedTokenizerBase

    from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
    from blip_recipe.data.dataset import CaptionDataset
    from blip_recipe.data.streaming import CaptionStream

SAMPLE = 1000
"""Number of images whose captions are tokenised to estimate the length of a row."""


def build_dataset(
    dataset: Any, args: CaptionTrainingArguments, processor: BlipProcessor, *, training: bool, name: str = "dataset"
) -> CaptionDataset | CaptionStream:
    """Convert a data set of images with captions for the trainer.

    Raises:
        RecipeError: The columns are unknown or have unexpected types.
    """
    return caption_dataset(
        dataset, args, processor, training=training, captions_per_image=args.captions_per_image, name=name
    )


def tokens_per_image(args: CaptionTrainingArguments, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> int:
    """The maximum number of caption tokens per image and step, over the first `SAMPLE` images."""
    lengths = []
    names = [name for name in ("captions", PROMPT) if name in rows.column_names]
    table = rows.select_columns(names)[range(min(SAMPLE, len(rows)))]
    for captions, prompt in zip(table["captions"], table.get(PROMPT, repeat(args.prompt)), strict=False):
        texts = [join_prompt(prompt, caption) for caption in captions]
        tokens = tokenizer(texts, truncation=True, max_length=args.max_caption_length).input_ids
        lengths.append(sum(sorted(map(len, tokens))[-(args.captions_per_image or len(tokens)) :]))
    return max(lengths)
