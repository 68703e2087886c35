"""Arguments of question answering. The module does not import torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from blip_recipe.data.arguments import DataArguments
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.training.arguments import GenerationArguments


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


@dataclass
class VqaArguments(GenerationArguments):
    """Training arguments of question answering."""

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
