"""Arguments of question answering. The module does not import torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from blip_recipe.data.arguments import DataArguments
from blip_recipe.errors import RecipeError
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.training.arguments import EmbeddingArguments, GenerationArguments
from blip_recipe.vqa.answer_lists import (
    FROM_TRAINING,
    MIN_QUESTIONS,
    RANK_BY,
    RANKED_ANSWERS,
    RankBy,
    read_answer_list,
)


@dataclass
class VqaModelArguments(ModelArguments):
    """Arguments of the model and its adapter."""

    model_name_or_path: str = field(
        default="Salesforce/blip-vqa-base", metadata=ModelArguments.__dataclass_fields__["model_name_or_path"].metadata
    )


@dataclass
class VqaDataArguments(DataArguments):
    """Arguments of a data set of pictures, questions and answers."""

    question_column: str | None = field(default=None, metadata={"help": "Column of questions."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of answers: one answer, or those of several annotators."}
    )
    answer_weight_column: str | None = field(
        default=None, metadata={"help": "Column with the weight of a row's answers in the loss; default: 1."}
    )


@dataclass
class VqaArguments(GenerationArguments, EmbeddingArguments):
    """Training arguments of question answering.

    Attributes:
        answers: The answers that are ranked; None before the training questions were read, or if none are.
    """

    _argument_group_name = "vqa"

    known_metrics: ClassVar[tuple[str, ...]] = ("vqa_accuracy", "exact_match")

    metrics: list[str] = field(
        default_factory=lambda: ["vqa_accuracy"], metadata={"help": "Metrics: vqa_accuracy exact_match."}
    )
    generation_max_length: int = field(default=10, metadata={"help": "Maximum answer length in tokens."})
    generation_min_length: int = field(default=1, metadata={"help": "Minimum answer length in tokens."})
    group_questions: bool = field(
        default=False,
        metadata={"help": "Put the questions about an image in the same batch, so that it is encoded once."},
    )
    answer_list: str | None = field(
        default=None,
        metadata={
            "help": "Choose answers from a list instead of generating them: a file (one answer per line, or a JSON "
            "list), or 'train' for the frequent answers of the training questions."
        },
    )
    answer_min_questions: int = field(
        default=MIN_QUESTIONS,
        metadata={
            "help": "Answers of answer_list 'train' are the most frequent answer of at least this many questions."
        },
    )
    rank_top_k: int = field(
        default=RANKED_ANSWERS,
        metadata={
            "help": "Number of answers of answer_list to compare in full: those with the most probable first token."
        },
    )
    rank_by: RankBy = field(
        default="smoothed_loss",
        metadata={"help": "Rank by BLIP's loss with label smoothing (smoothed_loss), or by likelihood."},
    )

    def __post_init__(self) -> None:
        for key in ("answer_min_questions", "rank_top_k"):
            if getattr(self, key) < 1:
                raise RecipeError(f"{key} is {getattr(self, key)}: expected at least 1.")
        if self.rank_by not in RANK_BY:
            raise RecipeError(f"rank_by is {self.rank_by!r}: expected one of {', '.join(RANK_BY)}.")
        self.answers: list[str] | None = None
        if self.answer_list not in (None, FROM_TRAINING):
            self.answers = read_answer_list(Path(str(self.answer_list)).expanduser(), "answer_list")
        super().__post_init__()

    def score_settings(self) -> dict[str, str]:
        """How answers of a list are ranked."""
        if self.answer_list is None:
            return super().score_settings()
        return {"rank_by": self.rank_by, "rank_top_k": str(self.rank_top_k)}
