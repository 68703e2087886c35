"""Pictures encoded once for all epochs, where neither they nor the image encoder change."""

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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from transformers import BlipProcessor, Seq2SeqTrainer

    from blip_recipe.data.dataset import CaptionDataset

logger = logging.getLogger(__name__)


def check_frozen(model: Any) -> None:
    """See that the image encoder stays as it is.

    Raises:
        RecipeError: It is trained.
    """
    if any(weight.requires_grad for weight in model.vision_model.parameters()):
        raise RecipeError(
            "cache_image_embeds is true, but the image encoder is trained: set freeze_vision, or adapt the text alone."
        )


def cache_embeddings(trainer: Seq2SeqTrainer, processor: BlipProcessor, datasets: Sequence[CaptionDataset]) -> None:
    """Encode every picture of `datasets` that is not kept yet; rows then come with embeddings in place of pictures.

    Processes share the work. What is computed from embeddings is what would be computed from pictures: they are kept in
    the precision that the text decoder reads them in.

    Raises:
        RecipeError: The disk is too small.
    """
    vision_model = trainer.accelerator.unwrap_model(trainer.model).vision_model
    args, image_processor = trainer.args, processor.image_processor
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    store = EmbeddingStore(vision_model.eval(), image_processor, dtype)
    store.check_space(sum(map(len, datasets)))
    for dataset in datasets:
        logger.info("Encoding the pictures that %s does not hold yet, of %d", store.folder, len(dataset))
        mine = range(args.process_index, len(dataset), args.world_size)
        pictures = PicturesToEncode(dataset.rows, mine, store, image_processor)
        keys = gather_object(list(_encode(trainer, vision_model, pictures)))
        dataset.use_embeddings(store, [key for _, key in sorted(keys)])


@torch.no_grad()
def _encode(trainer: Seq2SeqTrainer, vision_model: nn.Module, pictures: PicturesToEncode) -> Iterator[tuple[int, str]]:
    """Row number and key of each picture, once it is kept."""
    args: Any = trainer.args
    loader: DataLoader[Any] = DataLoader(
        pictures, args.per_device_eval_batch_size, num_workers=args.dataloader_num_workers, collate_fn=list
    )
    for batch in tqdm(loader, desc="encoding pictures", disable=args.disable_tqdm or not args.should_log):
        if missing := [each for each in batch if each.pixels is not None]:
            pixels = torch.stack([each.pixels for each in missing]).to(args.device)
            with trainer.accelerator.autocast():
                encoded = vision_model(
                    pixel_values=normalize_pixels(pixels, pictures.image_processor)
                ).last_hidden_state
            for each, embeds in zip(missing, encoded.cpu(), strict=True):
                pictures.store.save(each.key, embeds)
        yield from ((each.row, each.key) for each in batch)
