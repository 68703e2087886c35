"""Trainer's arguments with the defaults that BLIP was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import SchedulerType


@dataclass
class CaptionTrainingArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` whose defaults are those of BLIP's caption fine-tuning.

    Source of the defaults: `configs/caption_coco.yaml` and `train_caption.py` of the original repository, and its
    label smoothing of 0.1 in `models/med.py`. The generation keys live in `recipe.GenerationArguments`.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, applied to all parameters."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing of the token loss."})
    logging_steps: float = field(default=10, metadata={"help": "Log every N steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints are kept."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that read and prepare pictures."})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Compute in bfloat16; default: where the GPU has it."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin memory; default: where there is a GPU."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for weights that a step leaves out; BLIP's captioner has none."}
    )
    remove_unused_columns: bool = field(default=False, init=False)
    predict_with_generate: bool = field(default=True, init=False)
    generation_max_length: int | None = field(default=None, init=False)
    generation_num_beams: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            # Unless told so, accelerate takes the processes of `torchrun` on a machine without GPU for strangers.
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = (
                not self.use_cpu and not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            )
        # Left open, it is decided once it is known how much memory a step takes (`memory.choose_checkpointing`).
        self.checkpointing_is_open = self.activation_checkpointing is None and self.gradient_checkpointing is None
        if self.activation_checkpointing_kwargs is None and self.gradient_checkpointing_kwargs is None:
            # The reentrant kind needs inputs with gradients, which pictures and frozen embeddings are not.
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        super().__post_init__()
