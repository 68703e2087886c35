"""LoRA adapters and quantised bases."""

from __future__ import annotations

import copy
import json
import sys
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig

from blip_recipe.errors import RecipeError
from blip_recipe.models.weights import first_line

if TYPE_CHECKING:
    from pathlib import Path

    from peft import LoraConfig, PeftModel

    from blip_recipe.models.arguments import ModelArguments, Quantization
    from blip_recipe.models.stock import StockModel

LAYERS = "query key value dense (text), qkv projection fc1 fc2 (vision)"
"""The names of BLIP's linear layers, for messages."""


def quantization_config(quantization: Quantization | None) -> BitsAndBytesConfig | None:
    """bitsandbytes settings: LLM.int8() (arXiv 2208.07339), or QLoRA's NF4 with double quantisation (2305.14314)."""
    if quantization is None:
        return None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )


def quantization_of(model: Any) -> Quantization | None:
    """The precision that the weights of a model are kept in."""
    if getattr(model, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(model, "is_loaded_in_8bit", False) else None


def recorded_quantization(recipe: dict[str, Any]) -> Quantization | None:
    """The precision of the base model that an adapter's `recipe.json` was trained on."""
    if recipe.get("load_in_4bit"):
        return "4bit"
    return "8bit" if recipe.get("load_in_8bit") else None


def lora_config(arguments: ModelArguments) -> LoraConfig | None:
    """The adapter that a recipe asks for; None where it trains all weights."""
    from peft import LoraConfig

    if not arguments.use_peft:
        return None
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules,
        use_dora=arguments.use_dora,
        use_rslora=arguments.use_rslora,
    )


def add_lora(model: StockModel, config: LoraConfig) -> PeftModel:
    """Wrap `model` with a fresh LoRA adapter; everything else is frozen.

    Args:
        model: Full, or quantised.
        config: Left as it is. Without `target_modules`, every attention and feed-forward layer of the text is adapted;
            the task type, whose classes of peft BLIP's forward does not fit, is left out.

    Raises:
        RecipeError: `target_modules` matches nothing, or would adapt the LM head, whose weights are tied.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    config, targets = copy.copy(config), config.target_modules
    if targets and "all-linear" in ([targets] if isinstance(targets, str) else targets):
        raise RecipeError(
            "lora_target_modules is 'all-linear', which would adapt the LM head, whose weights are tied to the word "
            f"embeddings. Name the layers instead: {LAYERS}."
        )
    if quantization_of(model):
        # Its own gradient checkpointing breaks BLIP (an in-place addition on a leaf); Trainer switches it on later.
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config.target_modules = targets or model.lora_layers
    config.exclude_modules = config.exclude_modules or r".*\.cls\..*"
    config.task_type = None
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        names = targets if targets is None or isinstance(targets, str) else sorted(targets)
        raise RecipeError(f"lora_target_modules is {names}: {first_line(error)} The layers are {LAYERS}.") from error
    config.revision = getattr(model.config, "_commit_hash", None)
    return peft_model


def check_is_lora(config: Any, name: str) -> None:
    """Cards, `recipe.json` and merging know LoRA alone.

    Raises:
        RecipeError: The adapter that is called `name` is of another kind.
    """
    if getattr(config, "peft_type", None) != "LORA":
        raise RecipeError(f"{name} is a {type(config).__name__}: expected LoRA, such as LoraConfig(r=16).")


def is_adapted(model: Any) -> bool:
    """Whether `model` is a `PeftModel`; peft is imported where there is one, and not for this question."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def move_to_root(adapter_dir: Path, model: Any) -> None:
    """Move a saved adapter to where it is looked for: peft gives one not named 'default' a folder of its own."""
    folder = adapter_dir / str(model.active_adapter)
    if model.active_adapter != "default" and folder.is_dir():
        for path in folder.iterdir():
            path.replace(adapter_dir / path.name)
        folder.rmdir()


def name_stock_class(adapter_dir: Path, stock: type) -> None:
    """Make a saved adapter name the stock class of its base model, which everybody has."""
    path = adapter_dir / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_mapping"] = {"base_model_class": stock.__name__, "parent_library": stock.__module__}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
