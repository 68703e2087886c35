"""The runs of `training/test_sharding.py`, for two processes: `torchrun -m fsdp_runs PLACE copies`, then `sharded`.

With `vqa` as a third word, only the run of that task.

All in one job, because imports take most of the time. accelerate shards on accelerators only; for `sharded` it is told
to do so on CPUs too: `AcceleratorState` keeps the FSDP plugin that it is given. What shards, computes and saves is
torch's, accelerate's and Trainer's own.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from blip_recipe.finetune import main

KEYS = {
    "max_train_samples": 12,
    "max_eval_samples": 4,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "activation_checkpointing": True,
    "optim": "adamw_torch",
    "warmup_steps": 0,
    "augmentation": "blip",
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "metric_for_best_model": "loss",
    "dataloader_num_workers": 0,
    "use_cpu": True,
    "logging_steps": 1,
}
"""Two steps of two accumulated batches in each process, with a checkpoint and scores after each."""


def finetune(output_dir: Path, *, recipe: str = "shapes_tiny", **changes: object) -> None:
    """As `python -m blip_recipe.finetune`."""
    keys = KEYS | changes | {"output_dir": output_dir}
    main([f"recipes/{recipe}.json", *(f"--{key}={value}" for key, value in keys.items())])
    PartialState().wait_for_everyone()


def shard_on_cpus() -> None:
    """Let accelerate do on CPUs what it does on several GPUs."""
    stock_init = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        stock_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def copy_as_if_it_had_died(run: Path, copy: Path) -> None:
    """`run` as it was after its first checkpoint."""
    if PartialState().is_main_process:
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "checkpoint-2")
        (copy / "model.safetensors").unlink()
        note = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps(note | {"finished": False}))
    PartialState().wait_for_everyone()


if __name__ == "__main__":
    place, kind = Path(sys.argv[1]), sys.argv[2]
    keys: dict[str, Any] = {}
    push: dict[str, Any] = {}
    if kind == "sharded":
        shard_on_cpus()
        keys, push = {"fsdp": True}, {"push_to_hub": True, "hub_model_id": "lab/sharded"}
    if sys.argv[3:] == ["vqa"]:
        finetune(place / kind / "vqa", recipe="shapes_vqa", **keys)
        sys.exit()
    finetune(place / kind / "full", **keys, **push)
    if kind == "sharded":
        copy_as_if_it_had_died(place / kind / "full", place / kind / "resumed")
        finetune(place / kind / "resumed", **keys)
    base = place / "copies/full"
    finetune(
        place / kind / "lora", **keys, model_name_or_path=base, use_peft=True, merge_adapter=True, learning_rate=0.01
    )
