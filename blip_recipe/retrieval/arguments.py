"""The keys of retrieval. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from blip_recipe.errors import RecipeError
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.training.arguments import BlipArguments

RANKS = (1, 5, 10)
"""Where recall is measured."""


@dataclass
class RetrievalModelArguments(ModelArguments):
    """Which BLIP is fine-tuned, and how much of it."""

    model_name_or_path: str = field(
        default="Salesforce/blip-itm-base-coco",
        metadata=ModelArguments.__dataclass_fields__["model_name_or_path"].metadata,
    )


@dataclass
class RetrievalArguments(BlipArguments):
    """What a matcher's trainer does with images and texts."""

    _argument_group_name = "retrieval"

    known_metrics: ClassVar[tuple[str, ...]] = ("recall",)
    score_names: ClassVar[dict[str, tuple[str, ...]]] = {
        "recall": (
            *(f"{direction}_recall_{rank}" for direction in ("text", "image") for rank in RANKS),
            "recall_mean",
        )
    }

    metrics: list[str] = field(default_factory=lambda: ["recall"], metadata={"help": "Scores: recall."})
    max_caption_length: int = field(default=35, metadata={"help": "Longest text in tokens."})
    captions_per_image: int = field(default=1, metadata={"help": "Captions an image brings to a step: 1, drawn anew."})
    queue_size: int = field(default=57_600, metadata={"help": "Pairs whose features are compared with."})
    momentum: float = field(
        default=0.995, metadata={"help": "How much of their weights momentum encoders keep in a step."}
    )
    alpha: float = field(default=0.4, metadata={"help": "Share of what momentum encoders find in the targets of ITC."})
    negative_all_rank: bool = field(
        default=True, metadata={"help": "Hard negatives are those of all processes, or of its own alone."}
    )
    rerank_top_k: int = field(
        default=256, metadata={"help": "Best candidates by cosine, which ITM ranks again; 0 for none."}
    )

    def __post_init__(self) -> None:
        for name in ("queue_size", "rerank_top_k"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected at least 0.")
        for name in ("momentum", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected a share from 0 to 1.")
        if self.captions_per_image != 1:
            raise RecipeError(
                f"task is 'retrieval' and captions_per_image is {self.captions_per_image}: expected 1. A pair is an "
                "image and one of its captions, drawn anew each epoch."
            )
        super().__post_init__()
