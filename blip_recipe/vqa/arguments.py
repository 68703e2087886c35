"""The keys of question answering. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from blip_recipe.data.arguments import DataArguments
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.training.arguments import GenerationArguments


@dataclass
class VqaModelArguments(ModelArguments):
    """Which BLIP is fine-tuned, and how much of it."""

    model_name_or_path: str = field(
        default="Salesforce/blip-vqa-base", metadata=ModelArguments.__dataclass_fields__["model_name_or_path"].metadata
    )


@dataclass
class VqaDataArguments(DataArguments):
    """Where pictures with questions and answers come from."""

    question_column: str | None = field(default=None, metadata={"help": "Column of questions."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of answers, one or those of several annotators."}
    )


@dataclass
class VqaArguments(GenerationArguments):
    """What an answerer's trainer does with questions."""

    _argument_group_name = "vqa"

    known_metrics: ClassVar[tuple[str, ...]] = ("vqa_accuracy", "exact_match")

    metrics: list[str] = field(
        default_factory=lambda: ["vqa_accuracy"], metadata={"help": "Scores: vqa_accuracy exact_match."}
    )
    generation_max_length: int = field(default=10, metadata={"help": "Longest answer in tokens."})
    generation_min_length: int = field(default=1, metadata={"help": "Shortest answer in tokens."})
    group_questions: bool = field(
        default=False,
        metadata={"help": "Bring the questions about an image to a step together: it is read and encoded once."},
    )
