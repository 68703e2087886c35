"""Check the values of a recipe, against each other and against the model."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.errors import RecipeError
from blip_recipe.recipe.effects import check_effects

if TYPE_CHECKING:
    from collections.abc import Callable

    from blip_recipe.models.arguments import ModelArguments
    from blip_recipe.models.stock import StockModel
    from blip_recipe.recipe.arguments import FinetuneOptions
    from blip_recipe.recipe.recipe import Recipe
    from blip_recipe.training.training_arguments import BlipTrainingArguments

Range = tuple[str, "Callable[[float], bool]"]

AT_LEAST_ONE: Range = ("at least 1", lambda number: number >= 1)
AT_LEAST_ZERO: Range = ("at least 0", lambda number: number >= 0)
OVER_ZERO: Range = ("more than 0", lambda number: number > 0)
SEED: Range = ("at least 0 and less than 2**32", lambda number: 0 <= number < 2**32)
STEPS: Range = ("at least 1, or -1 for num_train_epochs", lambda number: number >= 1 or number == -1)
SHARE: Range = ("at least 0 and less than 1", lambda number: 0 <= number < 1)

RANGES: dict[str, Range] = {
    "num_train_epochs": OVER_ZERO,
    "max_steps": STEPS,
    "seed": SEED,
    "eval_steps": OVER_ZERO,
    "early_stopping_patience": AT_LEAST_ONE,
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
    "drop_path_rate": SHARE,
    "hidden_dropout_prob": SHARE,
    "attention_probs_dropout_prob": SHARE,
}
"""The range of each key that takes a number: its text in messages, and a test of the value."""

SPLIT_KEYS = ("train_split", "eval_split", "test_split")

SMALLEST_4BIT_WIDTH = 64
"""NF4 quantises blocks of 64 weights (arXiv 2305.14314, section 3)."""


def check_values(recipe: Recipe[Any]) -> None:
    """Check the ranges of numbers, the names of splits, and `output_dir`.

    Raises:
        RecipeError: A value is wrong. The message names the key, its value and what is expected.
    """
    values = vars(recipe.training) | vars(recipe.data) | vars(recipe.model)
    for key, (expected, is_right) in RANGES.items():
        number = values[key]
        if number is not None and not (math.isfinite(number) and is_right(number)):
            raise RecipeError(f"{key} is {number}: expected {expected}.")
    for key in SPLIT_KEYS:
        if values[key] is not None and not all(name.strip() for name in values[key].split("+")):
            raise RecipeError(
                f"{key} is {values[key]!r}: expected the name of a split, or a sum such as 'train+restval'."
            )
    check_output_dir(recipe)


def check_output_dir(recipe: Recipe[Any]) -> None:
    """Check that `output_dir` can be written, and holds neither the model that is trained nor the pictures.

    Raises:
        RecipeError: It cannot be used.
    """
    if not str(recipe.training.output_dir).strip():
        raise RecipeError("output_dir is empty: name the directory of the run.")
    output_dir = check_writable(recipe.output_dir)
    read = {
        "model_name_or_path": recipe.model.model_name_or_path,
        "dataset_name": recipe.data.dataset_name,
        "image_root": recipe.data.image_root,
    }
    for key, given in read.items():
        place = Path(given).expanduser() if given else None
        if place and output_dir.exists() and place.exists() and output_dir.samefile(place):
            raise RecipeError(
                f"output_dir and {key} are both {recipe.output_dir}: the run would write among the files that it "
                "reads. Name another output_dir."
            )


def check_writable(given: Path) -> Path:
    """Check that `output_dir` can be written, and make it absolute.

    Raises:
        RecipeError: It cannot be written.
    """
    output_dir = Path(os.path.abspath(given))  # noqa: PTH100 - links stay as they are
    try:
        output_dir.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise RecipeError(f"output_dir is {str(given)!r:.80}: no directory can have this name.") from error
    there = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    if not there.is_dir():
        raise RecipeError(f"output_dir is {given}, but {there} is a file: name another directory.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"output_dir is {given}, but {there} is not writable: name another directory.")
    return output_dir


def check_trackers(training: BlipTrainingArguments) -> None:
    """Check the trackers of `report_to` as Trainer will, before the data are read.

    Raises:
        RecipeError: Trainer knows none of this name, or it is not installed.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for tracker in get_reporting_integration_callbacks(training.report_to):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise RecipeError(f"report_to is {training.report_to}: {error}") from error


def check_model(recipe: Recipe[FinetuneOptions], model: Any) -> None:
    """Check the recipe against the model that was built.

    Raises:
        RecipeError: A value does not fit. The message names the key, its value and what the model has.
    """
    vision = model.config.vision_config
    if recipe.model.image_size is not None and recipe.model.image_size % vision.patch_size:
        raise RecipeError(
            f"image_size is {recipe.model.image_size}: expected a multiple of the patches of {vision.patch_size} "
            "pixels."
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


def check_quantisable(model: ModelArguments, model_class: type[StockModel]) -> None:
    """Check that the layers of the base model are wide enough for 4 bits, before it is loaded.

    Raises:
        RecipeError: They are too narrow, or the model is not a BLIP of `model_class`.
    """
    if not model.load_in_4bit:
        return

    from blip_recipe.models.loading import check_is_blip

    config: Any = check_is_blip(
        model.model_name_or_path,
        model_class,
        revision=model.model_revision,
        trust_remote_code=model.trust_remote_code,
    )
    width = min(config.text_config.hidden_size, config.vision_config.hidden_size)
    if width < SMALLEST_4BIT_WIDTH:
        raise RecipeError(
            f"load_in_4bit is true, but {model.model_name_or_path} has layers of width {width}: expected at least "
            f"{SMALLEST_4BIT_WIDTH}. Use load_in_8bit, or no quantisation."
        )


def check_recipe(recipe: Recipe[FinetuneOptions]) -> None:
    """Check the keys against each other, before anything is loaded.

    Raises:
        RecipeError: Keys contradict each other, or a needed one is missing.
    """
    model, data, training = recipe.model, recipe.data, recipe.training
    if data.dataset_name is None:
        raise RecipeError("dataset_name is missing: expected a Hub id, a directory, a captions file or 'shapes'.")
    if (model.load_in_8bit or model.load_in_4bit) and not model.use_peft:
        raise RecipeError(
            "Quantised weights cannot be trained: set use_peft to true to train an adapter on top of them."
        )
    if model.use_peft and model.image_size is not None and not model.merge_adapter:
        raise RecipeError(
            "image_size changes position embeddings, which an adapter does not save: set merge_adapter too."
        )
    if model.drop_path_rate and getattr(training, "cache_image_embeds", False):
        raise RecipeError(
            f"drop_path_rate is {model.drop_path_rate:g} and cache_image_embeds is true, but a cached picture is not "
            "encoded again: leave one of them out."
        )
    _check_sharding(recipe)
    recipe.task.check(model, data, training)
    if training.eval_strategy != "no" and not data.has_split("eval"):
        raise RecipeError(
            f"eval_strategy is {str(training.eval_strategy)!r}, but eval_split is missing: name the split to score, "
            "or set validation_fraction to hold out training images."
        )
    check_effects(recipe)
    _check_push(recipe)
    _check_resumption(training)
    training.check_best_model()


def _check_push(recipe: Recipe[FinetuneOptions]) -> None:
    model, training = recipe.model, recipe.training
    if (
        recipe.push_to_hub
        and model.use_peft
        and (not model.merge_adapter or recipe.pushes_checkpoints)
        and Path(model.model_name_or_path).expanduser().exists()
    ):
        raise RecipeError(
            f"model_name_or_path is the local {model.model_name_or_path!r}, which nobody else has: an adapter that is "
            "pushed needs a base model on the Hub. Push the base first, or set merge_adapter without hub_strategy."
        )
    if recipe.push_to_hub and training.hub_revision is not None:
        raise RecipeError(
            f"hub_revision is {training.hub_revision!r}, but a finished model is pushed to main: leave it out. hub_tag "
            "tags the published commit."
        )


def _check_resumption(training: BlipTrainingArguments) -> None:
    if training.resume_from_checkpoint in ("true", "True", "last", "false", "False"):
        training.resume_from_checkpoint = None  # a rerun resumes from the newest checkpoint anyway
    if training.resume_from_checkpoint and not Path(training.resume_from_checkpoint, "trainer_state.json").is_file():
        raise RecipeError(
            f"resume_from_checkpoint is {training.resume_from_checkpoint!r}, which is not a checkpoint: expected a "
            "directory with trainer_state.json. Leave it out to resume from the newest checkpoint in output_dir."
        )


def _check_sharding(recipe: Recipe[FinetuneOptions]) -> None:
    """Check that nothing contradicts FSDP, if FSDP is requested.

    Raises:
        RecipeError: FSDP does not work with another setting, which the message names.
    """
    from blip_recipe.training.sharding import is_env_true, is_fsdp_requested

    training, model = recipe.training, recipe.model
    if not is_fsdp_requested(training):
        return
    if "LOCAL_RANK" not in os.environ:
        raise RecipeError(
            "FSDP is set, but there is one process: start the command with `accelerate launch` or `torchrun`, or "
            "leave fsdp out."
        )
    plugin: dict[str, Any] = training.fsdp_plugin_args or {"fsdp_version": int(os.environ.get("FSDP_VERSION", "1"))}
    asked = {
        "its version 1 (set fsdp_version to 2)": plugin["fsdp_version"] != 2,
        "stage 'scst'": recipe.stage == "scst",
        "load_in_8bit": model.load_in_8bit,
        "load_in_4bit": model.load_in_4bit,
        "fp16 (set bf16)": training.fp16,
        "torch_compile": training.torch_compile,
        "FSDP's cpu_offload": plugin.get("cpu_offload") or is_env_true("FSDP_OFFLOAD_PARAMS"),
        "FSDP's activation_checkpointing (set gradient_checkpointing)": plugin.get("activation_checkpointing")
        or is_env_true("FSDP_ACTIVATION_CHECKPOINTING"),
    }
    if wrong := next((name for name, is_given in asked.items() if is_given), None):
        raise RecipeError(
            f"FSDP and {wrong} are set, but do not work together: leave one of them out. BLIP has under "
            "half a billion parameters: without FSDP, several processes train it with DistributedDataParallel."
        )
