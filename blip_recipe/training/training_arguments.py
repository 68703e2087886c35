"""`Seq2SeqTrainingArguments` with the defaults that BLIP was trained with."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import SchedulerType

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.scores import LOWER_IS_BETTER
from blip_recipe.training.arguments import BlipArguments, MomentumArguments
from blip_recipe.training.sharding import disable_ram_efficient_loading, is_fsdp_requested

MAX_WORKERS = 8
"""Enough for the fastest GPUs: one trains on about 900 pictures a second, and a core reads and augments about 280
(`benchmarks/loading.py`)."""


def cores_of_this_process() -> int:
    """CPU cores per process that `accelerate launch` or `torchrun` started on this machine."""
    return (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclass
class BlipTrainingArguments(BlipArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the defaults of BLIP's fine-tuning and the arguments that all tasks share.

    Source of the defaults: `configs/caption_coco.yaml` and `train_caption.py` of the original repository, and its
    label smoothing of 0.1 in `models/med.py`.

    Three arguments are fixed and cannot be given: `remove_unused_columns=False`, because the trainers find pictures and
    texts in any column; `predict_with_generate=True`, because generated texts are scored; and
    `dataloader_persistent_workers=False`, because Trainer would read every split with the data loader of the first.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, applied to all parameters."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing of the token loss."})
    logging_steps: float = field(default=10, metadata={"help": "Log every N steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints to keep."})
    dataloader_num_workers: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Worker processes per GPU that read pictures; default: the cores divided by the GPUs, at most 8; 0 "
            "without a GPU, where the model uses the cores."
        },
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Compute in bfloat16; default: if the GPU supports it."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin memory; default: if there is a GPU."}
    )
    # transformers' own type is a text or a list, of which the parser of recipes would take the text alone.
    report_to: list[str] | None = field(  # type: ignore[assignment]
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers that get logs, scores and tables of texts, such as tensorboard, trackio or wandb."},
    )
    # Both names, as transformers has had the first since 5.23 and warns of the second since.
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Compute activations again in the backward pass instead of keeping them; default: where a step "
            "would not fit the GPU."
        },
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of `torch.utils.checkpoint.checkpoint`."}
    )
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "The same as activation_checkpointing."}
    )
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "The same as activation_checkpointing_kwargs."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without gradient in a step; BLIP has none."}
    )
    # With persistent workers, Trainer would reuse the data loader of the first evaluated split for all others.
    dataloader_persistent_workers: bool = field(default=False, init=False)
    remove_unused_columns: bool = field(default=False, init=False)
    predict_with_generate: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        for name in ("metrics", "eval_metrics"):
            if isinstance(value := getattr(self, name), str):
                raise RecipeError(f"{name} is {value!r}: expected a list of names, such as {value.split()}.")
        super().__post_init__()
        if token := next((name for name in ("hub_token", "push_to_hub_token") if getattr(self, name, None)), None):
            raise RecipeError(
                f"{token} is given, but a recipe must not hold a token: set HF_TOKEN or run `hf auth login`."
            )
        if not torch.accelerator.is_available():
            # Otherwise accelerate would not connect the processes of `torchrun` on a machine without a GPU.
            self.use_cpu = True
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 0 if self.use_cpu else min(MAX_WORKERS, max(1, cores_of_this_process()))
        if self.bf16 is None:
            self.bf16 = (
                not self.use_cpu and not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            )
        # If neither is given, `memory.choose_checkpointing` decides by the estimated memory of a step.
        self.auto_checkpointing = self.activation_checkpointing is None and self.gradient_checkpointing is None
        if self.activation_checkpointing_kwargs is None and self.gradient_checkpointing_kwargs is None:
            # The reentrant kind needs inputs with gradients; pictures and frozen embeddings have none.
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        for suffix in ("", "_kwargs"):
            newer, older = f"activation_checkpointing{suffix}", f"gradient_checkpointing{suffix}"
            given = getattr(self, older) if getattr(self, newer) is None else getattr(self, newer)
            setattr(self, newer, given)
            setattr(self, older, given)
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            # Recipes write true or false; Trainer expects a bool or names of strategies.
            self.fsdp = True if self.fsdp.lower() == "true" else None  # type: ignore[assignment]
        if (
            self.greater_is_better is None
            and self.metric_for_best_model
            and set(self._best_names) <= {*LOWER_IS_BETTER}
        ):
            self.greater_is_better = False
        Seq2SeqTrainingArguments.__post_init__(self)
        # transformers before 5.23 parses and reads the older names only.
        self.activation_checkpointing = self.gradient_checkpointing = bool(self.gradient_checkpointing)
        self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        disable_ram_efficient_loading(self)

    @property
    def _best_names(self) -> list[str]:
        """The scores that `metric_for_best_model` adds."""
        return (self.metric_for_best_model or "loss").removeprefix("eval_").split("+")

    def check_best_model(self) -> None:
        """Check that `metric_for_best_model` is one of the scores, before the first evaluation needs it.

        Raises:
            RecipeError: It is not; the message lists the scores.
        """
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise RecipeError(
                "early_stopping_patience is given, but load_best_model_at_end is false: set it to true, and set "
                "eval_strategy and metric_for_best_model."
            )
        best = self._best_names
        scores = self.scores(self.metrics_while_training())
        known = scores if len(best) > 1 else ["loss", *scores]
        if unknown := [part for part in best if part not in known]:
            raise RecipeError(
                f"metric_for_best_model names {unknown[0]!r}, which is not scored during training: expected one of "
                f"{', '.join(known)}."
            )
        lower = [part for part in best if part in LOWER_IS_BETTER]
        if lower and len(lower) < len(best):
            raise RecipeError(
                f"metric_for_best_model is {self.metric_for_best_model!r}, but {lower[0]} is better when it is lower, "
                "and the others when they are higher: leave one of them out."
            )

    @property
    def place_model_on_device(self) -> bool | None:
        """Place a sharded model on the device at the start too: the base model is scored before training."""
        return True if is_fsdp_requested(self) else None


@dataclass
class MomentumTrainingArguments(MomentumArguments, BlipTrainingArguments):
    """`BlipTrainingArguments` for losses with momentum encoders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.save_only_model:
            raise RecipeError(
                f"task is {self.task_name!r} and save_only_model is true, but checkpoints must hold the momentum "
                "encoders: leave it out."
            )
        if is_fsdp_requested(self):
            raise RecipeError(
                f"task is {self.task_name!r} and FSDP is enabled, but momentum encoders need full weights in each "
                "process: start several processes without FSDP (DistributedDataParallel)."
            )
