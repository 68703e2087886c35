"""Encode every picture once and train on the cached embeddings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from blip_recipe.data.embeddings import EmbeddingStore, PicturesToEncode
from blip_recipe.data.pixels import normalize_pixels
from blip_recipe.errors import RecipeError
from blip_recipe.models.vision import encode_images
from blip_recipe.training.stop_signals import shield_workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from transformers import BlipProcessor, Seq2SeqTrainer

    from blip_recipe.data.dataset import PictureDataset

logger = logging.getLogger(__name__)


def check_frozen(model: Any) -> None:
    """Check that the image encoder is frozen.

    Raises:
        RecipeError: It is not frozen.
    """
    if any(weight.requires_grad for weight in model.vision_model.parameters()):
        raise RecipeError(
            "cache_image_embeds is true, but the image encoder is trained: set freeze_vision, or adapt the text only."
        )


def cache_embeddings(trainer: Seq2SeqTrainer, processor: BlipProcessor, datasets: Sequence[PictureDataset]) -> None:
    """Encode every picture of `datasets` that is not cached yet, and make their rows return embeddings.

    The processes share the work. The embeddings are stored in the precision that the text decoder computes in, so
    losses are the same as with pictures.

    Raises:
        RecipeError: The disk is too small.
    """
    vision_model = trainer.accelerator.unwrap_model(trainer.model).vision_model
    args, image_processor = trainer.args, processor.image_processor
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    store = EmbeddingStore(vision_model.eval(), image_processor, dtype)
    shared = [dataset.picture_rows() for dataset in datasets]
    different = [sorted(set(rows)) for rows in shared]
    store.check_space(sum(map(len, different)))
    for dataset, rows, pictures in zip(datasets, shared, different, strict=True):
        logger.info("Encoding the pictures that are not in %s yet, of %d", store.folder, len(pictures))
        mine = pictures[args.process_index :: args.world_size]
        to_encode = PicturesToEncode(dataset.rows, mine, store, image_processor)
        keys = dict(gather_object(list(_encode(trainer, vision_model, to_encode))))
        dataset.use_embeddings(store, [keys[row] for row in rows])


@torch.no_grad()
def _encode(trainer: Seq2SeqTrainer, vision_model: nn.Module, pictures: PicturesToEncode) -> Iterator[tuple[int, str]]:
    """Cache the embeddings of each picture, and yield its row number and key."""
    args: Any = trainer.args
    loader: DataLoader[Any] = DataLoader(
        pictures, args.per_device_eval_batch_size, num_workers=args.dataloader_num_workers, collate_fn=list
    )
    silent = args.disable_tqdm or not args.should_log
    for batch in tqdm(shield_workers(loader), desc="encoding pictures", disable=silent):
        if missing := [each for each in batch if each.pixels is not None]:
            pixels = torch.stack([each.pixels for each in missing]).to(args.device)
            with trainer.accelerator.autocast():
                encoded = encode_images(vision_model, normalize_pixels(pixels, pictures.image_processor))
            for each, embeds in zip(missing, encoded.cpu(), strict=True):
                pictures.store.save(each.key, embeds)
        yield from ((each.row, each.key) for each in batch)
