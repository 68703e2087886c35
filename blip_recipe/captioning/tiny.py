"""Build a tiny captioner with new weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.models.tiny import IMAGE_SIZE, add_positions, build_tokenizer, tiny_config, tiny_processor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import BlipProcessor


def build_tiny_captioner(
    captions: Iterable[str], image_size: int | None = None
) -> tuple[BlipForCaptioning, BlipProcessor]:
    """Build a tiny captioner with the vocabulary of `captions`, and its processor. Weights use torch's random state."""
    size = image_size or IMAGE_SIZE
    tokenizer = build_tokenizer(captions)
    processor = tiny_processor(tokenizer, size)
    model = BlipForCaptioning(tiny_config(tokenizer, size))
    # Position embeddings as large as patch embeddings let the model use positions from the first step.
    nn.init.normal_(model.vision_model.embeddings.position_embedding, std=1.0)
    add_positions(model, model.text_decoder.bert)
    return model, processor
