"""Arguments of retrieval. The module does not import torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from blip_recipe.models.arguments import ModelArguments
from blip_recipe.training.arguments import EmbeddingArguments, MomentumArguments, check_not_negative

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
class RetrievalArguments(MomentumArguments, EmbeddingArguments):
    """Training arguments of retrieval."""

    _argument_group_name = "retrieval"

    task_name: ClassVar[str] = "retrieval"

    known_metrics: ClassVar[tuple[str, ...]] = ("recall",)
    score_names: ClassVar[dict[str, tuple[str, ...]]] = {
        "recall": (
            *(f"{direction}_recall_{rank}" for direction in ("text", "image") for rank in RANKS),
            "recall_mean",
        )
    }

    metrics: list[str] = field(default_factory=lambda: ["recall"], metadata={"help": "Metrics: recall."})
    max_caption_length: int = field(default=35, metadata={"help": "Maximum text length in tokens."})
    rerank_top_k: int = field(
        default=256, metadata={"help": "Number of candidates (best by cosine) that ITM re-ranks; 0 for none."}
    )

    def __post_init__(self) -> None:
        check_not_negative(self, "rerank_top_k")
        super().__post_init__()
