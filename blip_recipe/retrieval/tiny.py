"""Build a tiny model for retrieval with new weights."""

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
from blip_recipe.retrieval.modeling import BlipForRetrieval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import BlipProcessor


def build_tiny_retriever(texts: Iterable[str], image_size: int | None = None) -> tuple[BlipForRetrieval, BlipProcessor]:
    """Build a tiny BLIP with the vocabulary of `texts`, and its processor. Weights use torch's random state."""
    size = image_size or IMAGE_SIZE
    tokenizer = build_tokenizer(texts)
    model = BlipForRetrieval(tiny_config(tokenizer, size))
    enlarge_weights(model, without=(model.itm_head,))
    add_positions(model, model.text_encoder)
    return model, tiny_processor(tokenizer, size)
