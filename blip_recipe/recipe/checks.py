"""What a recipe may not say: numbers out of range, directories in the way, and what does not fit the model."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.errors import RecipeError
from blip_recipe.recipe.task_keys import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import BlipProcessor

    from blip_recipe.models.attention import StockModel
    from blip_recipe.recipe.parsing import FinetuneOptions, Recipe

Range = tuple[str, "Callable[[float], bool]"]

AT_LEAST_ONE: Range = ("at least 1", lambda number: number >= 1)
AT_LEAST_ZERO: Range = ("at least 0", lambda number: number >= 0)
OVER_ZERO: Range = ("more than 0", lambda number: number > 0)
SHARE: Range = ("at least 0 and less than 1", lambda number: 0 <= number < 1)

RANGES: dict[str, Range] = {
    "num_train_epochs": OVER_ZERO,
    "per_device_train_batch_size": AT_LEAST_ONE,
    "per_device_eval_batch_size": AT_LEAST_ONE,
    "gradient_accumulation_steps": AT_LEAST_ONE,
    "learning_rate": AT_LEAST_ZERO,
    "weight_decay": AT_LEAST_ZERO,
    "max_grad_norm": AT_LEAST_ZERO,
    "label_smoothing_factor": SHARE,
    "dataloader_num_workers": AT_LEAST_ZERO,
    "image_size": AT_LEAST_ONE,
    "lora_r": AT_LEAST_ONE,
    "lora_alpha": AT_LEAST_ONE,
    "lora_dropout": SHARE,
}
"""Keys that any number can be written for, but not trained with."""

SPLIT_KEYS = ("train_split", "eval_split", "test_split")

SMALLEST_4BIT_WIDTH = 64
"""NF4 quantises blocks of 64 weights (arXiv 2305.14314, section 3)."""


def check_values(recipe: Recipe[Any]) -> None:
    """Find numbers out of range, empty names of splits, and an `output_dir` that can be no directory.

    Raises:
        RecipeError: Names the key, its value and what it may be.
    """
    values: dict[str, Any] = {}
    for part in (recipe.training, recipe.generation, recipe.data, recipe.model):
        values |= vars(part)
    for key, (expected, is_right) in RANGES.items():
        number = values[key]
        if number is not None and not (math.isfinite(number) and is_right(number)):
            raise RecipeError(f"{key} is {number}: expected {expected}.")
    for key in SPLIT_KEYS:
        if values[key] is not None and not all(name.strip() for name in values[key].split("+")):
            raise RecipeError(
                f"{key} is {values[key]!r}: expected the name of a split, or a sum such as 'train+restval'."
            )
    generation = recipe.generation
    if not 0 <= generation.generation_min_length <= generation.generation_max_length:
        raise RecipeError(
            f"generation_min_length is {generation.generation_min_length} and generation_max_length "
            f"{generation.generation_max_length}: the minimum may not be over the maximum."
        )
    check_output_dir(recipe)


def check_metrics(recipe: Recipe[Any]) -> None:
    """Find metrics of another task.

    Raises:
        RecipeError: Names one, and those of the task.
    """
    metrics = TASKS[recipe.objective.task].metrics
    if unknown := [name for name in recipe.generation.metrics if name not in metrics]:
        raise RecipeError(
            f"metrics names {unknown[0]!r}, which task {recipe.objective.task!r} does not have: expected some of "
            f"{', '.join(metrics)}."
        )


def check_output_dir(recipe: Recipe[Any]) -> None:
    """Find an `output_dir` that cannot be written, or that holds the model which is read.

    Raises:
        RecipeError: It is one.
    """
    output_dir = Path(os.path.abspath(recipe.output_dir))  # noqa: PTH100 - links stay as they are
    there = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    if not there.is_dir():
        raise RecipeError(f"output_dir is {recipe.output_dir}, but {there} is a file: name another directory.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"output_dir is {recipe.output_dir}, but {there} may not be written: name another directory.")
    model = Path(recipe.model.model_name_or_path).expanduser()
    if output_dir.exists() and model.exists() and output_dir.samefile(model):
        raise RecipeError(
            f"output_dir and model_name_or_path are both {recipe.output_dir}: what is written there would replace the "
            "model that is read. Name another output_dir."
        )


def check_fits(recipe: Recipe[FinetuneOptions], model: Any, processor: BlipProcessor) -> None:
    """Find keys that the built model cannot keep to.

    Raises:
        RecipeError: Names the key, its value and what the model has.
    """
    data, generation, tokenizer = recipe.data, recipe.generation, processor.tokenizer
    text, vision = model.config.text_config, model.config.vision_config
    if recipe.model.image_size is not None and recipe.model.image_size % vision.patch_size:
        raise RecipeError(
            f"image_size is {recipe.model.image_size}: expected a multiple of the patches of {vision.patch_size} "
            "pixels."
        )
    if not 0.9 * text.vocab_size <= len(tokenizer) <= text.vocab_size:
        raise RecipeError(
            f"The tokenizer of {recipe.model.model_name_or_path} knows {len(tokenizer):,} words, but its model "
            f"{text.vocab_size:,}: one of their files is missing or of another model. Expected the files that "
            "`processor.save_pretrained` writes (tokenizer.json, tokenizer_config.json)."
        )
    lengths = {"max_caption_length": data.max_caption_length, "generation_max_length": generation.generation_max_length}
    prompt_length = len(tokenizer(data.prompt).input_ids) - 1
    for key, length in lengths.items():
        if length > text.max_position_embeddings:
            raise RecipeError(f"{key} is {length}: the model reads at most {text.max_position_embeddings} tokens.")
        if length <= prompt_length:
            raise RecipeError(
                f"{key} is {length}, but the prompt {data.prompt!r:.60} alone is {prompt_length} tokens, which count: "
                "raise it, or shorten the prompt."
            )
    if recipe.model.freeze_vision:
        trained = [
            name for name, weights in model.named_parameters() if weights.requires_grad and "vision_model" in name
        ]
        if trained:
            raise RecipeError(
                f"freeze_vision is true, but lora_target_modules {recipe.model.lora_target_modules} adapts the image "
                "encoder (qkv, projection, fc1, fc2): leave one of them out."
            )


def check_quantisable(recipe: Recipe[FinetuneOptions], model_class: type[StockModel]) -> None:
    """Find a base model whose layers are too narrow for 4 bits, before it is loaded.

    Raises:
        RecipeError: It is one, or it is no BLIP of the kind of `model_class`.
    """
    if not recipe.model.load_in_4bit:
        return
    from blip_recipe.models.loading import check_is_blip

    model = recipe.model
    config: Any = check_is_blip(
        model.model_name_or_path,
        model_class,
        revision=model.model_revision,
        trust_remote_code=model.trust_remote_code,
    )
    width = min(config.text_config.hidden_size, config.vision_config.hidden_size)
    if width < SMALLEST_4BIT_WIDTH:
        raise RecipeError(
            f"load_in_4bit is true, but {model.model_name_or_path} has layers of {width}: expected at least "
            f"{SMALLEST_4BIT_WIDTH}. Use load_in_8bit or neither."
        )
