"""Arguments of pre-training. The module does not import torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from blip_recipe.training.arguments import CaptionTextArguments, MomentumArguments


@dataclass
class PretrainArguments(CaptionTextArguments, MomentumArguments):
    """Training arguments of pre-training."""

    _argument_group_name = "pre-training"

    task_name: ClassVar[str] = "pretrain"

    max_words: int | None = field(
        default=30,
        metadata={"help": "Maximum number of words of a training caption, as in the original; null: no limit."},
    )
    max_caption_length: int = field(default=30, metadata={"help": "Maximum text length in tokens, as in the original."})
    negative_all_rank: bool = field(
        default=False,
        metadata={"help": "Draw hard negatives from the batches of all processes, not only of the own one."},
    )
    prompt: str = field(default="", init=False)
