"""Arguments of transformers' Trainer with the defaults that BLIP was trained with."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import SchedulerType

from blip_recipe.errors import RecipeError
from blip_recipe.training.arguments import BlipArguments
from blip_recipe.training.sharding import disable_ram_efficient_loading, is_fsdp_requested

MAX_WORKERS = 8
"""Enough for the fastest GPUs: one takes about 900 pictures a second, a core reads and augments some 280
(`benchmarks/loading.py`)."""


def cores_of_this_process() -> int:
    """Cores of the machine for each of the processes that `accelerate launch` or `torchrun` started on it."""
    return (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclass
class BlipTrainingArguments(BlipArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` whose defaults are those of BLIP's fine-tuning, with the keys of all tasks.

    Source of the defaults: `configs/caption_coco.yaml` and `train_caption.py` of the original repository, and its
    label smoothing of 0.1 in `models/med.py`.

    Three arguments of `Seq2SeqTrainingArguments` are fixed and cannot be given: `remove_unused_columns=False`, as the
    trainers read pictures and texts from any columns; `predict_with_generate=True`, as scores are of generated texts;
    and `dataloader_persistent_workers=False`, as Trainer would read every split with the workers of the first.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, applied to all parameters."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing of the token loss."})
    logging_steps: float = field(default=10, metadata={"help": "Log every N steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints are kept."})
    dataloader_num_workers: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Processes that read and prepare pictures, for each GPU; default: as many as cores, up to 8, and "
            "none without a GPU, where the model takes the cores."
        },
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Compute in bfloat16; default: where the GPU has it."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin memory; default: where there is a GPU."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for weights that a step leaves out; BLIP has none."}
    )
    # Trainer keeps the loader of the first split that it scores, and would take it for every other split.
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
                f"{token} is given, but a token must not stand in a recipe: set HF_TOKEN or run `hf auth login`."
            )
        if not torch.accelerator.is_available():
            # Unless told so, accelerate takes the processes of `torchrun` on a machine without GPU for strangers.
            self.use_cpu = True
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 0 if self.use_cpu else min(MAX_WORKERS, max(1, cores_of_this_process()))
        if self.bf16 is None:
            self.bf16 = (
                not self.use_cpu and not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            )
        # Left open, it is decided once it is known how much memory a step takes (`memory.choose_checkpointing`).
        self.auto_checkpointing = self.activation_checkpointing is None and self.gradient_checkpointing is None
        if self.activation_checkpointing_kwargs is None and self.gradient_checkpointing_kwargs is None:
            # The reentrant kind needs inputs with gradients, which pictures and frozen embeddings are not.
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            # As a recipe writes it; Trainer knows the bare flag and names of strategies.
            self.fsdp = True if self.fsdp.lower() == "true" else None  # type: ignore[assignment]
        Seq2SeqTrainingArguments.__post_init__(self)
        disable_ram_efficient_loading(self)

    def check_best_model(self) -> None:
        """Find a `metric_for_best_model` that is none of our scores, before the first evaluation asks for it.

        Raises:
            RecipeError: Names it, and those that there are.
        """
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise RecipeError(
                "early_stopping_patience is given, but load_best_model_at_end is false: set it, with eval_strategy and "
                "metric_for_best_model, to say what has to become better."
            )
        best = (self.metric_for_best_model or "loss").removeprefix("eval_")
        scores = self.scores(self.metrics_while_training())
        known = scores if "+" in best else ["loss", *scores]
        if unknown := [part for part in best.split("+") if part not in known]:
            raise RecipeError(
                f"metric_for_best_model names {unknown[0]!r}, which is not scored while training: {', '.join(known)}."
            )

    @property
    def place_model_on_device(self) -> bool | None:
        """Where a sharded model too begins, whole: the base is scored before it is trained."""
        return True if is_fsdp_requested(self) else None
