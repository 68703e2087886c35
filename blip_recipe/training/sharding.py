"""Weights, gradients and optimiser state spread over the processes: FSDP2, through Trainer and accelerate.

Each layer is gathered when it is its turn. What accelerate cannot know of BLIP is told here:

- The LM head shares its weight with the word embeddings, and its bias goes by two names: all of it stays in the root.
- `generate` and the image encoder are called without the root's `forward`, and captions of different length take
  different numbers of steps in each process: for an evaluation every process has the weights whole.
- Precision is Trainer's autocast, as without FSDP, so that losses and gradients are those of one process; accelerate's
  own policy would round the losses themselves to 16 bits.
- A checkpoint holds whole weights, and the finished model is saved as it always is, under the stock names.
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
"""The classes whose modules are gathered one by one; the rest is the root's."""

WEIGHTS_FILE = "pytorch_model_fsdp.bin"
"""What accelerate names the weights that a sharded run resumes from."""


def is_fsdp_requested(training: TrainingArguments) -> bool:
    """Whether the recipe, or `accelerate launch --use_fsdp`, asks for FSDP."""
    return bool(training.fsdp) or is_env_true("ACCELERATE_USE_FSDP")


def is_env_true(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "false").lower() in ("1", "true")


def disable_ram_efficient_loading(training: TrainingArguments) -> None:
    """Have every process of a sharded run read the whole model: the base is scored before it is sharded."""
    if not is_fsdp_requested(training):
        return
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if training.fsdp_plugin_args:
        training.fsdp_plugin_args["cpu_ram_efficient_loading"] = False


def configure_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    """Tell accelerate how BLIP is cut up, computed and saved, whatever it was told before."""
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = list(LAYERS)
    plugin.mixed_precision_policy = None
    plugin.cpu_ram_efficient_loading = False
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type("FULL_STATE_DICT")


@contextmanager
def keep_embeddings_in_root(model: Any) -> Iterator[None]:
    """Keep word embeddings and LM head in one group while accelerate shards `model`.

    It would make a group of what `get_input_embeddings` names, with a weight that the LM head in the root has too.
    """
    model.get_input_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_input_embeddings


def gather_weights(model: Any) -> None:
    """Have the weights whole in this process, until they are sharded again; nothing to do where they always are.

    To be called by all processes.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


@contextmanager
def unsharded_weights(model: Any, plugin: FullyShardedDataParallelPlugin | None) -> Iterator[None]:
    """As `gather_weights`, and shard them again, after each forward pass too if `plugin` says so."""
    gather_weights(model)
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
                # The root's are needed first in the backward pass, where they would be gathered at once again.
                module.set_reshard_after_forward(
                    module is not model and bool(plugin and plugin.reshard_after_forward), recurse=False
                )


def drop_tied_weights(state_dict: dict[str, Any] | None, model: Any) -> dict[str, Any] | None:
    """Gathered weights by the names they are saved under: each gathered by itself, tied ones no longer share memory."""
    if state_dict is None:
        return None
    return {name: weight for name, weight in state_dict.items() if name not in model.all_tied_weights_keys}


def describe_shards(model: Any) -> str:
    """How much of the model this process keeps."""
    mine = sum(weight.to_local().numel() for weight in model.parameters() if isinstance(weight, DTensor))
    groups = sum(isinstance(module, FSDPModule) for module in model.modules())
    total = sum(weight.numel() for weight in model.parameters())
    return f"{mine:,} of {total:,} weights in this process, gathered in {groups} groups"


def check_checkpoint_sharding(checkpoint: str, *, sharded: bool) -> None:
    """Find a checkpoint of a run that was sharded where this one is not, or the other way round.

    Raises:
        RecipeError: It is one.
    """
    if Path(checkpoint, WEIGHTS_FILE).exists() != sharded:
        raise RecipeError(
            f"{checkpoint} was written {'without' if sharded else 'with'} FSDP, and this run is started "
            f"{'with' if sharded else 'without'} it: start it as before, or afresh with --overwrite_output_dir true."
        )
