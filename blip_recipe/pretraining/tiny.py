"""Build a tiny model for pre-training with new weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blip_recipe.models.tiny import (
    IMAGE_SIZE,
    add_positions,
    build_tokenizer,
    enlarge_weights,
    tiny_config,
    tiny_processor,
)
from blip_recipe.pretraining.modeling import BlipForPretraining

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import BlipProcessor


def build_tiny_pretrained(
    texts: Iterable[str], image_size: int | None = None
) -> tuple[BlipForPretraining, BlipProcessor]:
    """Build a tiny BLIP with the vocabulary of `texts`, and its processor. Weights use torch's random state."""
    size = image_size or IMAGE_SIZE
    tokenizer = build_tokenizer(texts)
    model = BlipForPretraining(tiny_config(tokenizer, size))
    enlarge_weights(model, without=(model.itm_head, model.text_decoder.get_output_embeddings()))
    add_positions(model, model.text_decoder.bert)
    return model, tiny_processor(tokenizer, size)
