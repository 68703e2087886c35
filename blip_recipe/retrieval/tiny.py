"""Build a tiny model for retrieval with new weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from blip_recipe.models.tiny import IMAGE_SIZE, add_positions, build_tokenizer, tiny_config, tiny_processor
from blip_recipe.retrieval.modeling import BlipForRetrieval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import BlipProcessor

WEIGHT_STD = 0.06
"""Standard deviation of new linear layers. BLIP's 0.01 and 0.02 are too small for a narrow model: the outputs of its
layers would be negligible next to the residual stream, and ITM would stay at chance for a thousand steps."""


def build_tiny_retriever(texts: Iterable[str], image_size: int | None = None) -> tuple[BlipForRetrieval, BlipProcessor]:
    """Build a tiny BLIP with the vocabulary of `texts`, and its processor. Weights use torch's random state."""
    size = image_size or IMAGE_SIZE
    tokenizer = build_tokenizer(texts)
    model = BlipForRetrieval(tiny_config(tokenizer, size))
    # As in `build_tiny_captioner`: large position embeddings let the model use positions from the first step.
    nn.init.normal_(model.vision_model.embeddings.position_embedding, std=1.0)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.itm_head:
            nn.init.normal_(module.weight, std=WEIGHT_STD)
    add_positions(model, model.text_encoder)
    return model, tiny_processor(tokenizer, size)
