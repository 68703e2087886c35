"""Arguments of captioning and of self-critical training. The module does not import torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from blip_recipe.errors import RecipeError
from blip_recipe.models.decoding import COUNTS_PROMPT
from blip_recipe.training.arguments import CaptionTextArguments, EmbeddingArguments, check_at_least_one

REWARDS = {
    "cider_reward_weight": "CIDEr-D",
    "bleu_reward_weight": "BLEU-4",
    "clip_reward_weight": "CLIPScore",
    "itm_reward_weight": "matching probability",
}
"""The name of the reward of each weight."""


@dataclass
class CaptionArguments(CaptionTextArguments, EmbeddingArguments):
    """Training arguments of captioning."""

    _argument_group_name = "captioning"

    beam_settings: ClassVar[dict[str, Any]] = {
        **CaptionTextArguments.beam_settings,
        "generation_length_penalty_counts_prompt": False,
    }

    generation_length_penalty_counts_prompt: bool = field(
        default=False,
        metadata={
            "help": "Count the prompt in the length by which the score of a beam is divided, as the original does."
        },
    )
    prompt: str = field(default="", metadata={"help": "Text that every caption starts with, e.g. 'a picture of '."})
    captions_per_image: int | None = field(
        default=None,
        metadata={"help": "Captions of each image in an epoch: all (default), or N that are sampled in each epoch."},
    )

    def __post_init__(self) -> None:
        check_at_least_one(self, "captions_per_image")
        super().__post_init__()

    def generate_kwargs(self) -> dict[str, Any]:
        """Arguments of `generate_token_ids` for beam search without sampling."""
        own = {COUNTS_PROMPT: True} if self.generation_length_penalty_counts_prompt else {}
        return super().generate_kwargs() | own


@dataclass
class ScstArguments(CaptionArguments):
    """Training arguments of self-critical sequence training (arXiv 1612.00563)."""

    _argument_group_name = "self-critical training"

    num_generations: int = field(default=5, metadata={"help": "Sampled captions per image."})
    scst_baseline: Literal["leave_one_out", "greedy"] = field(
        default="leave_one_out",
        metadata={
            "help": "Baseline of a sample's reward: the mean of the image's other samples, or its greedy caption."
        },
    )
    cider_reward_weight: float = field(default=1.0, metadata={"help": "Weight of CIDEr-D in the reward."})
    bleu_reward_weight: float = field(default=0.0, metadata={"help": "Weight of BLEU-4 in the reward."})
    clip_reward_weight: float = field(
        default=0.0, metadata={"help": "Weight of CLIPScore, by clip_model_name_or_path, in the reward."}
    )
    itm_reward_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the matching probability, by itm_model_name_or_path, in the reward."},
    )
    kl_coef: float = field(
        default=0.0,
        metadata={"help": "Weight of the KL divergence from the starting model (in nats), subtracted from the reward."},
    )
    xe_weight: float = field(
        default=0.0, metadata={"help": "Weight of the cross entropy (without label smoothing) in the loss, below 1."}
    )

    def __post_init__(self) -> None:
        least = 2 if self.scst_baseline == "leave_one_out" else 1
        if self.num_generations < least:
            raise RecipeError(
                f"num_generations is {self.num_generations}: expected at least {least} with scst_baseline "
                f"{self.scst_baseline!r}."
            )
        if not 0 <= self.xe_weight < 1:
            raise RecipeError(f"xe_weight is {self.xe_weight}: expected at least 0 and less than 1.")
        for name in (*REWARDS, "kl_coef"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected at least 0.")
        if not any(getattr(self, name) for name in REWARDS):
            raise RecipeError(f"{', '.join(REWARDS)} are all 0: set at least one of them.")
        super().__post_init__()

    def _itm_users(self) -> list[str]:
        return super()._itm_users() + (["itm_reward_weight"] if self.itm_reward_weight else [])

    @property
    def uses_clip(self) -> bool:
        """Whether a CLIP is needed."""
        return super().uses_clip or self.clip_reward_weight > 0
