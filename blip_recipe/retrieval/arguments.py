"""Arguments of retrieval. The module does not import torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from blip_recipe.errors import RecipeError
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.training.arguments import BlipArguments

RANKS = (1, 5, 10)
"""The ranks of recall."""


@dataclass
class RetrievalModelArguments(ModelArguments):
    """Arguments of the model and its adapter."""

    model_name_or_path: str = field(
        default="Salesforce/blip-itm-base-coco",
        metadata=ModelArguments.__dataclass_fields__["model_name_or_path"].metadata,
    )


@dataclass
class RetrievalArguments(BlipArguments):
    """Training arguments of retrieval."""

    _argument_group_name = "retrieval"

    known_metrics: ClassVar[tuple[str, ...]] = ("recall",)
    score_names: ClassVar[dict[str, tuple[str, ...]]] = {
        "recall": (
            *(f"{direction}_recall_{rank}" for direction in ("text", "image") for rank in RANKS),
            "recall_mean",
        )
    }

    metrics: list[str] = field(default_factory=lambda: ["recall"], metadata={"help": "Metrics: recall."})
    max_caption_length: int = field(default=35, metadata={"help": "Maximum text length in tokens."})
    captions_per_image: int = field(default=1, metadata={"help": "Captions per image and epoch; must be 1."})
    queue_size: int = field(default=57_600, metadata={"help": "Image-text pairs in the momentum queue of ITC."})
    momentum: float = field(default=0.995, metadata={"help": "Momentum of the momentum encoders, from 0 to 1."})
    alpha: float = field(default=0.4, metadata={"help": "Weight of the momentum encoders' soft targets in ITC."})
    negative_all_rank: bool = field(
        default=True, metadata={"help": "Sample hard negatives from the batches of all processes."}
    )
    rerank_top_k: int = field(
        default=256, metadata={"help": "Number of candidates (best by cosine) that ITM re-ranks; 0 for none."}
    )

    def __post_init__(self) -> None:
        for name in ("queue_size", "rerank_top_k"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected at least 0.")
        for name in ("momentum", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected a number from 0 to 1.")
        if self.captions_per_image != 1:
            raise RecipeError(
                f"task is 'retrieval' and captions_per_image is {self.captions_per_image}: expected 1. Each epoch "
                "samples one caption per image."
            )
        super().__post_init__()
