"""Build the data sets and streams of images with captions, and what all tasks need for theirs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from datasets import IterableDataset

from blip_recipe.data.captions import MAX_WORDS
from blip_recipe.data.convert import caption_rows, shard_stream
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.data.resized_cache import cache_folder, cache_resized_pictures
from blip_recipe.data.shards import ShardedSplit
from blip_recipe.data.streaming import CaptionStream, PictureStream

if TYPE_CHECKING:
    from collections.abc import Mapping

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
) -> CaptionDataset | CaptionStream:
    """Convert a data set of images with captions (see `caption_rows`) for a trainer; a stream is read while training.

    Only training samples captions, augments pictures and reads resized pictures from `image_cache`. Evaluation uses
    every caption and the unchanged pictures. Error messages call the data set `name`.

    Raises:
        RecipeError: The columns are unknown, or `image_cache` cannot be written.
    """
    texts: dict[str, Any] = {
        "captions_per_image": captions_per_image if training else None,
        "normalize_captions": args.normalize_captions,
        "max_words": getattr(args, "max_words", MAX_WORDS),
    }
    if training and is_stream(dataset):
        split = dataset if isinstance(dataset, ShardedSplit) else shard_stream(dataset, name)
        stream = CaptionStream(split, **texts, **stream_keywords(args, split, processor))
        warn_of_few_shards(stream, args)
        return stream
    rows = caption_rows(dataset, name)
    size = processor.image_processor.size["height"]
    return CaptionDataset(
        rows,
        **texts,
        image_size=size,
        augmentation=args.augmentation if training else "none",
        seed=args.seed,
        resized=resized_pictures(rows, size, args) if training else None,
    )


def resized_pictures(rows: Any, image_size: int, args: BlipTrainingArguments) -> Mapping[int, str] | None:
    """Paths of the resized copies of large pictures, by row number; None without `image_cache`."""
    folder = cache_folder(args.image_cache)
    return cache_resized_pictures(rows, image_size, folder) if folder else None


def stream_keywords(args: BlipTrainingArguments, split: ShardedSplit, processor: BlipProcessor) -> dict[str, Any]:
    """The arguments of `PictureStream` that all tasks share."""
    return {
        "image_size": processor.image_processor.size["height"],
        "augmentation": args.augmentation,
        "seed": args.seed,
        "shuffle_buffer_size": args.shuffle_buffer_size,
        "on_bad_image": split.arguments.on_bad_image,
        "process": args.process_index,
        "processes": args.world_size,
    }


def is_stream(dataset: Any) -> bool:
    """Whether a training data set is read while training."""
    return isinstance(dataset, (IterableDataset, ShardedSplit))


def warn_of_few_shards(stream: PictureStream, args: BlipTrainingArguments) -> None:
    """Warn if shards must be shared, because there are fewer of them than readers."""
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
