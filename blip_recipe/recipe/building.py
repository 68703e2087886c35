"""Build the model of a recipe, ready to train."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from blip_recipe.data.arguments import SHAPES
from blip_recipe.models.adapters import add_lora, lora_config
from blip_recipe.models.arguments import MISSING, TINY_MODEL
from blip_recipe.models.loading import load_base
from blip_recipe.models.regularization import set_drop_path, set_text_dropout
from blip_recipe.models.vocabulary import add_tokens, missing_tokens, use_tokenizer
from blip_recipe.recipe.checks import check_model, check_quantisable
from blip_recipe.training.compatibility import check_compatibility
from blip_recipe.training.embeddings import check_frozen

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.data.arguments import DataArguments
    from blip_recipe.recipe.recipe import Recipe


logger = logging.getLogger(__name__)


def build_model(recipe: Recipe[Any], rows: Dataset) -> tuple[Any, BlipProcessor]:
    """Load or create the model to train on `rows` and its processor, and check that the recipe fits them.

    Raises:
        RecipeError: There is no such model, or it does not fit the recipe.
    """
    arguments, task = recipe.model, recipe.task
    set_seed(recipe.training.seed)
    check_quantisable(arguments, recipe.trainer.model_class)
    if arguments.model_name_or_path == TINY_MODEL:
        texts = task.vocabulary_texts(rows, recipe.training, drawn=is_drawn(recipe.data))
        model, processor = task.build_tiny(texts, arguments.image_size)
    else:
        model, processor = load_base(
            arguments.model_name_or_path,
            recipe.trainer.model_class,
            revision=arguments.model_revision,
            quantization=arguments.quantization,
            image_size=arguments.image_size,
            trust_remote_code=arguments.trust_remote_code,
        )
    if arguments.tokenizer_name:
        use_tokenizer(model, processor, arguments.tokenizer_name)
    if arguments.add_tokens:
        _add_tokens(recipe, model, processor, rows)
    if arguments.attention_implementation == "sdpa":
        model.use_sdpa()
    if arguments.freeze_vision:
        model.vision_model.requires_grad_(False)
    set_drop_path(model, arguments.drop_path_rate)
    set_text_dropout(model, hidden=arguments.hidden_dropout_prob, attention=arguments.attention_probs_dropout_prob)
    adapter = lora_config(arguments)
    model = model if adapter is None else add_lora(model, adapter)
    check_model(recipe, model)
    check_compatibility(recipe.training, model, processor)
    if getattr(recipe.training, "cache_image_embeds", False):
        check_frozen(model)
    return model, processor


def is_drawn(data: DataArguments) -> bool:
    """Whether some of the data are drawn scenes."""
    return SHAPES in (data.dataset_name, *(part.keys["dataset_name"] for part in data.mixture))


def _add_tokens(recipe: Recipe[Any], model: Any, processor: BlipProcessor, rows: Dataset) -> None:
    """Add the tokens of the recipe, or those that the training texts need."""
    tokens = recipe.model.add_tokens or []
    if tokens == MISSING:
        texts = recipe.task.vocabulary_texts(rows, recipe.training, drawn=False)
        tokens = missing_tokens(texts, processor.tokenizer)
    added = add_tokens(model, processor.tokenizer, tokens)
    logger.info("Added %d tokens to the vocabulary, such as %s", len(added), ", ".join(added[:10]))
