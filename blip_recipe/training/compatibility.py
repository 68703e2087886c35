"""Check that arguments, model and processor fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blip_recipe.errors import RecipeError
from blip_recipe.training.score_models import check_score_models

if TYPE_CHECKING:
    from transformers import BlipProcessor, PreTrainedTokenizerBase

LENGTH_KEYS = ("max_caption_length", "generation_max_length")
"""Keys of lengths in tokens, prompt included."""


def check_compatibility(args: Any, model: Any, processor: BlipProcessor) -> None:
    """Check the text lengths against the model, that the processor belongs to it, and the models of scores.

    Raises:
        RecipeError: A length is too long or too short, the processor belongs to another model, or a model of scores is
            of another kind.
    """
    text, tokenizer = model.config.text_config, processor.tokenizer
    if not 0.9 * text.vocab_size <= len(tokenizer) <= text.vocab_size:
        raise RecipeError(
            f"The tokenizer of {model.name_or_path or 'the model'} has {len(tokenizer):,} tokens, but the model's "
            f"vocabulary has {text.vocab_size:,}: a tokenizer file is missing or belongs to another model. Expected "
            "the files that `processor.save_pretrained` writes (tokenizer.json, tokenizer_config.json)."
        )
    side, size = model.config.vision_config.image_size, processor.image_processor.size
    if (size["height"], size["width"]) != (side, side):
        raise RecipeError(
            f"The image processor resizes pictures to {size['width']}x{size['height']} pixels, but the model reads "
            f"{side}x{side}: expected the processor of this model."
        )
    for key in LENGTH_KEYS:
        if (length := getattr(args, key, None) or 0) > text.max_position_embeddings:
            raise RecipeError(f"{key} is {length}: the model reads at most {text.max_position_embeddings} tokens.")
    check_prompt_fits(args, getattr(args, "prompt", ""), tokenizer, text.max_position_embeddings)
    check_score_models(args)


def check_prompt_fits(args: Any, prompt: str, tokenizer: PreTrainedTokenizerBase, positions: int) -> None:
    """Check that a prompt leaves room for a text.

    Raises:
        RecipeError: It has as many tokens as a text may have.
    """
    prompt_length = len(tokenizer(prompt).input_ids) - 1
    for key in LENGTH_KEYS:
        length = getattr(args, key, None) or positions
        if length <= prompt_length:
            raise RecipeError(
                f"{key} is {length} and includes the prompt {prompt!r:.60} of {prompt_length} tokens: raise it, or "
                "shorten the prompt."
            )
