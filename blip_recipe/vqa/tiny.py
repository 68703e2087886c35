"""Build a tiny model for question answering with new weights."""

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
"""Standard deviation of new weights. BLIP's 0.01 and 0.02 are too small for a narrow model: the outputs of its layers
would be negligible next to the residual stream."""


def build_tiny_answerer(texts: Iterable[str], image_size: int | None = None) -> tuple[BlipForAnswering, BlipProcessor]:
    """Build a tiny BLIP with the vocabulary of `texts`, and its processor. Weights use torch's random state.

    The patch projection is frozen. The 6,912 values of a patch are mostly equal, so a step of Adam moves all their
    weights the same way. After 60 steps, patch embeddings would be eight times larger than position embeddings, and the
    model would not learn positions in 96,000 questions; with a frozen projection it takes 8,000.
    """
    size = image_size or IMAGE_SIZE
    tokenizer = build_tokenizer(texts)
    config = tiny_config(tokenizer, size)
    config.text_config.initializer_range = WEIGHT_STD
    model = BlipForAnswering(config)
    # As in `build_tiny_captioner`: large position embeddings let the model use positions from the first step.
    nn.init.normal_(model.vision_model.embeddings.position_embedding, std=1.0)
    model.vision_model.embeddings.patch_embedding.requires_grad_(False)
    for module in model.vision_model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=WEIGHT_STD)
    add_positions(model, model.text_encoder, model.text_decoder.bert)
    use_question_token(tokenizer, model.config.text_config.bos_token_id)
    return model, tiny_processor(tokenizer, size)
