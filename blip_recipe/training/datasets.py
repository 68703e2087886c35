"""Build the data sets of images with captions that captioning and retrieval train on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from datasets import IterableDataset

from blip_recipe.data.captions import MAX_WORDS
from blip_recipe.data.convert import caption_rows, shard_stream
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.data.resized_cache import cache_folder, cache_resized_pictures
from blip_recipe.data.shards import ShardedSplit
from blip_recipe.data.streaming import CaptionStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import BlipProcessor

    from blip_recipe.training.training_arguments import BlipTrainingArguments

logger = logging.getLogger(__name__)


def caption_dataset(
    dataset: Any,
    args: BlipTrainingArguments,
    processor: BlipProcessor,
    *,
    training: bool,
    captions_per_image: int | None,
    name: str = "dataset",
) -> CaptionDataset:
    """Convert a data set of images with captions (see `caption_rows`) for a trainer.

    Only training samples captions, augments pictures and reads resized pictures from `image_cache`. Evaluation uses
    every caption and the unchanged pictures. Error messages call the data set `name`.

    Raises:
        RecipeError: The columns are unknown, or `image_cache` cannot be written.
    """
    rows = caption_rows(dataset, name)
    size = processor.image_processor.size["height"]
    return CaptionDataset(
        rows,
        image_size=size,
        captions_per_image=captions_per_image if training else None,
        normalize_captions=args.normalize_captions,
        max_words=getattr(args, "max_words", MAX_WORDS),
        augmentation=args.augmentation if training else "none",
        seed=args.seed,
        resized=resized_pictures(rows, size, args) if training else None,
    )


def resized_pictures(rows: Any, image_size: int, args: BlipTrainingArguments) -> Mapping[int, str] | None:
    """Paths of the resized copies of large pictures, by row number; None without `image_cache`."""
    folder = cache_folder(args.image_cache)
    return cache_resized_pictures(rows, image_size, folder) if folder else None


def training_stream(
    dataset: IterableDataset | ShardedSplit,
    args: BlipTrainingArguments,
    processor: BlipProcessor,
    *,
    captions_per_image: int | None,
    shuffle_buffer_size: int,
) -> CaptionStream:
    """Convert a streamed data set of images with captions for a trainer."""
    split = shard_stream(dataset, "train_dataset") if isinstance(dataset, IterableDataset) else dataset
    stream = CaptionStream(
        split,
        image_size=processor.image_processor.size["height"],
        captions_per_image=captions_per_image,
        normalize_captions=args.normalize_captions,
        max_words=getattr(args, "max_words", MAX_WORDS),
        augmentation=args.augmentation,
        seed=args.seed,
        shuffle_buffer_size=shuffle_buffer_size,
        on_bad_image=split.arguments.on_bad_image,
        process=args.process_index,
        processes=args.world_size,
    )
    workers = max(1, args.dataloader_num_workers or 0)
    if stream.parts(workers) > 1 and args.process_index == 0:
        logger.warning(
            "%d shards are fewer than %d processes x %d workers: each shard is read %d times per epoch. Use more and "
            "smaller shards, or fewer workers (dataloader_num_workers).",
            stream.shards,
            args.world_size,
            workers,
            stream.parts(workers),
        )
    return stream


def image_ids(captions: Iterable[Sequence[str]]) -> torch.Tensor:
    """An id for each image, `(images,)`: the row number of the first image with the same captions.

    Images with the same captions cannot be told apart by texts, so they are neither negatives nor errors of each other.
    This matters for drawn scenes, which may differ in details that no caption mentions, not for photographs.
    """
    first: dict[tuple[str, ...], int] = {}
    return torch.tensor([first.setdefault(tuple(each), row) for row, each in enumerate(captions)])
