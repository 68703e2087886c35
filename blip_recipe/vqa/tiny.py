"""The embedded model for questions: the tiny captioner's shape, with an encoder for the question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from blip_recipe.models.tiny import IMAGE_SIZE, add_positions, build_tokenizer, tiny_config, tiny_processor
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tokens import use_question_token

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import BlipProcessor


WEIGHT_STD = 0.06
"""Of fresh layers: with a wide model's 0.01 and 0.02 those of a narrow one are silent beside what they are added to."""


def build_tiny_answerer(texts: Iterable[str], image_size: int | None = None) -> tuple[BlipForAnswering, BlipProcessor]:
    """A tiny BLIP that knows the words of `texts`, and its processor; the weights follow torch's random state.

    The projection of patches stays as it is drawn. A patch has 6,912 numbers, most of them alike: one step of Adam
    moves all their weights the same way, and within 60 steps, while the model learns which answers are frequent,
    patches would be eight times louder than positions. Where a thing is could then not be learnt in 96,000 questions;
    like this it takes 8,000.
    """
    size = image_size or IMAGE_SIZE
    tokenizer = build_tokenizer(texts)
    config = tiny_config(tokenizer, size)
    config.text_config.initializer_range = WEIGHT_STD
    model = BlipForAnswering(config)
    # As in `build_tiny_captioner`: places are told apart from the first step.
    nn.init.normal_(model.vision_model.embeddings.position_embedding, std=1.0)
    model.vision_model.embeddings.patch_embedding.requires_grad_(False)
    for module in model.vision_model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=WEIGHT_STD)
    add_positions(model, model.text_encoder, model.text_decoder.bert)
    use_question_token(tokenizer, model.config.text_config.bos_token_id)
    return model, tiny_processor(tokenizer, size)
