"""Create and save LoRA adapters, and quantise their base models."""

from __future__ import annotations

import copy
import json
import sys
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig

from blip_recipe.errors import RecipeError
from blip_recipe.models.weights import first_line

if TYPE_CHECKING:
    from pathlib import Path

    from peft import LoraConfig, PeftModel

    from blip_recipe.models.arguments import ModelArguments, Quantization
    from blip_recipe.models.stock import StockModel

WEIGHTS_FILE = "adapter_model.safetensors"
"""The file of an adapter's weights."""

BASE_PREFIX = "base_model.model."
"""The prefix of the base model's parameters in the names of a `PeftModel`."""

LAYERS = "query key value dense (text), qkv projection fc1 fc2 (vision)"
"""The names of BLIP's linear layers, for error messages."""


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
    """The quantisation of a model's weights; None if they are not quantised."""
    if getattr(model, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(model, "is_loaded_in_8bit", False) else None


def recorded_quantization(recipe: dict[str, Any]) -> Quantization | None:
    """The quantisation of the base model that an adapter was trained on, from its `recipe.json`."""
    if recipe.get("load_in_4bit"):
        return "4bit"
    return "8bit" if recipe.get("load_in_8bit") else None


def lora_config(arguments: ModelArguments) -> LoraConfig | None:
    """The LoRA configuration of a recipe; None if it trains all weights."""
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
    """Wrap `model` with a new LoRA adapter, and freeze everything but its `learnt_beside_lora`.

    Args:
        model: The base model, full or quantised.
        config: The LoRA configuration; a copy is used. Without `target_modules`, every attention and feed-forward layer
            of the text is adapted. The task type is removed, because peft's task classes do not fit BLIP's `forward`.

    Raises:
        RecipeError: `target_modules` matches no layer, or includes the LM head, whose weights are tied.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    config, targets = copy.copy(config), config.target_modules
    if targets and "all-linear" in ([targets] if isinstance(targets, str) else targets):
        raise RecipeError(
            "lora_target_modules is 'all-linear', which would adapt the LM head, whose weights are tied to the word "
            f"embeddings. Name the layers instead: {LAYERS}."
        )
    if quantization_of(model):
        # Its gradient checkpointing fails for BLIP (an in-place addition on a leaf). Trainer enables it later.
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
    for name in model.learnt_beside_lora:
        model.get_parameter(name).requires_grad_(True)
    return peft_model


def check_is_lora(config: Any, name: str) -> None:
    """Check that an adapter is a LoRA: cards, `recipe.json` and merging support no other kind.

    Raises:
        RecipeError: The adapter is of another kind; the message calls it `name`.
    """
    if getattr(config, "peft_type", None) != "LORA":
        raise RecipeError(f"{name} is a {type(config).__name__}: expected LoRA, such as LoraConfig(r=16).")


def is_adapted(model: Any) -> bool:
    """Whether `model` is a `PeftModel`. Does not import peft."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def move_to_root(adapter_dir: Path, model: Any) -> None:
    """Move a saved adapter to `adapter_dir`; peft saves one that is not named 'default' in a subfolder."""
    folder = adapter_dir / str(model.active_adapter)
    if model.active_adapter != "default" and folder.is_dir():
        for path in folder.iterdir():
            path.replace(adapter_dir / path.name)
        folder.rmdir()


def save_learnt_beside(adapter_dir: Path, model: Any) -> None:
    """Add the parameters that are learnt beside the LoRA matrices (`learnt_beside_lora`) to a saved adapter.

    peft saves the matrices only, but loads every parameter of the file that the model has.
    """
    base = model.get_base_model()
    learnt = {BASE_PREFIX + name: base.get_parameter(name).detach().cpu().clone() for name in base.learnt_beside_lora}
    if learnt:
        path = adapter_dir / WEIGHTS_FILE
        save_file(load_file(path) | learnt, path, metadata={"format": "pt"})


def name_stock_class(adapter_dir: Path, stock: type) -> None:
    """Write the stock class of the base model into a saved adapter, so that it loads without this package."""
    path = adapter_dir / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_mapping"] = {"base_model_class": stock.__name__, "parent_library": stock.__module__}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
