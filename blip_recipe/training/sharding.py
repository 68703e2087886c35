"""Shard weights, gradients and optimiser state with FSDP2, through Trainer and accelerate.

Each layer is gathered when it is computed. This module configures what is special about BLIP:

- The LM head shares its weight with the word embeddings, and its bias has two names: both stay in the root group.
- `generate` and the image encoder are called without the root's `forward`, and generation takes different numbers of
  steps in each process: every process gathers all weights for an evaluation.
- Precision is Trainer's autocast, as without FSDP, so that losses and gradients equal those of one process.
  accelerate's mixed precision would round the losses to 16 bits.
- Checkpoints hold full weights, and the model is saved as without FSDP, under the stock names.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

LAYERS = ("BlipEncoderLayer", "BlipTextLayer")
"""Each module of these classes is a group of its own; all other weights are in the root group."""

WEIGHTS_FILE = "pytorch_model_fsdp.bin"
"""The file of weights that accelerate writes into the checkpoints of a sharded run."""


def is_fsdp_requested(training: TrainingArguments) -> bool:
    """Whether the arguments or `accelerate launch --use_fsdp` ask for FSDP."""
    return bool(training.fsdp) or is_env_true("ACCELERATE_USE_FSDP")


def is_env_true(variable: str) -> bool:
    """Whether an environment variable is `1` or `true`."""
    return os.environ.get(variable, "false").lower() in ("1", "true")


def disable_ram_efficient_loading(training: TrainingArguments) -> None:
    """Load the full model in every process of a sharded run: the base model is scored before it is sharded."""
    if not is_fsdp_requested(training):
        return
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if training.fsdp_plugin_args:
        training.fsdp_plugin_args["cpu_ram_efficient_loading"] = False


def configure_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    """Set the groups, precision and saving format of the FSDP plugin, whatever it was given for them."""
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = list(LAYERS)
    plugin.mixed_precision_policy = None
    plugin.cpu_ram_efficient_loading = False
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type("FULL_STATE_DICT")


@contextmanager
def keep_embeddings_in_root(model: Any) -> Iterator[None]:
    """Keep word embeddings and LM head in the root group while accelerate shards `model`.

    accelerate would put the module of `get_input_embeddings` in a group of its own, but the LM head shares its weight.
    """
    model.get_input_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_input_embeddings


def gather_weights(model: Any) -> None:
    """Gather all weights in this process until they are sharded again; does nothing without FSDP.

    All processes must call it.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


@contextmanager
def unsharded_weights(model: Any, plugin: FullyShardedDataParallelPlugin | None) -> Iterator[None]:
    """Gather all weights, shard them again afterwards, and restore the `reshard_after_forward` of `plugin`."""
    gather_weights(model)
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
                # The backward pass starts with the root's weights and would gather them again at once.
                module.set_reshard_after_forward(
                    module is not model and bool(plugin and plugin.reshard_after_forward), recurse=False
                )


def drop_tied_weights(state_dict: dict[str, Any] | None, model: Any) -> dict[str, Any] | None:
    """Remove tied weights from a gathered state dict: after gathering they no longer share memory."""
    if state_dict is None:
        return None
    return {name: weight for name, weight in state_dict.items() if name not in model.all_tied_weights_keys}


def describe_shards(model: Any) -> str:
    """Describe how much of the model this process holds."""
    mine = sum(weight.to_local().numel() for weight in model.parameters() if isinstance(weight, DTensor))
    groups = sum(isinstance(module, FSDPModule) for module in model.modules())
    total = sum(weight.numel() for weight in model.parameters())
    return f"{mine:,} of {total:,} weights in this process, gathered in {groups} groups"


def check_checkpoint_sharding(checkpoint: str, *, sharded: bool) -> None:
    """Check that a checkpoint was written with FSDP if this run uses it, and without if not.

    Raises:
        RecipeError: It was not.
    """
    if Path(checkpoint, WEIGHTS_FILE).exists() != sharded:
        raise RecipeError(
            f"{checkpoint} was written {'without' if sharded else 'with'} FSDP, but this run is "
            f"{'with' if sharded else 'without'} it. Start the run as before, or train into an empty output_dir."
        )
