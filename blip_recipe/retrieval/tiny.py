"""The embedded model of matching: the tiny captioner's shape, with an encoder for texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from blip_recipe.models.tiny import IMAGE_SIZE, add_positions, build_tokenizer, tiny_config, tiny_processor
from blip_recipe.retrieval.modeling import BlipForRetrieval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import BlipProcessor

WEIGHT_STD = 0.06
"""Of fresh linear layers. The 0.01 and 0.02 of wide models leave the layers of a narrow one silent beside what they are
added to, and matching, which has one bit of truth a pair, at chance for a thousand steps."""


def build_tiny_retriever(texts: Iterable[str], image_size: int | None = None) -> tuple[BlipForRetrieval, BlipProcessor]:
    """A tiny BLIP that knows the words of `texts`, and its processor; the weights follow torch's random state."""
    size = image_size or IMAGE_SIZE
    tokenizer = build_tokenizer(texts)
    model = BlipForRetrieval(tiny_config(tokenizer, size))
    # As in `build_tiny_captioner`: places are told apart from the first step.
    nn.init.normal_(model.vision_model.embeddings.position_embedding, std=1.0)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.itm_head:
            nn.init.normal_(module.weight, std=WEIGHT_STD)
    add_positions(model, model.text_encoder)
    return model, tiny_processor(tokenizer, size)
