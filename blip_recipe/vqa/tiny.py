"""The embedded model for questions: the tiny captioner's shape, with an encoder for the question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from transformers import BlipImageProcessor, BlipProcessor

from blip_recipe.tiny import IMAGE_SIZE, add_positions, build_tokenizer, tiny_config
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tokens import mark_questions

if TYPE_CHECKING:
    from collections.abc import Iterable


INITIALIZER_RANGE = 0.06
"""Of the text's weights. With BERT's 0.02 attention is flat at first: an answer has few words to learn it by, and takes
about twice as many questions as with this."""


def build_tiny_answerer(texts: Iterable[str], image_size: int | None = None) -> tuple[BlipForAnswering, BlipProcessor]:
    """A tiny BLIP that knows the words of `texts`, and its processor; the weights follow torch's random state."""
    size = image_size or IMAGE_SIZE
    tokenizer = build_tokenizer(texts)
    config = tiny_config(tokenizer, size)
    config.text_config.initializer_range = INITIALIZER_RANGE
    model = BlipForAnswering(config)
    # As in `build_tiny_blip`: places are told apart from the first step.
    nn.init.normal_(model.vision_model.embeddings.position_embedding, std=1.0)
    add_positions(model, model.text_encoder, model.text_decoder.bert)
    mark_questions(tokenizer, model.config.text_config.bos_token_id)
    return model, BlipProcessor(BlipImageProcessor(size={"height": size, "width": size}), tokenizer)
