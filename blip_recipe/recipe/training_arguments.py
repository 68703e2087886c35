"""List the training argument classes, which import torch, by task and stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blip_recipe.captioning.training_arguments import CaptionTrainingArguments, ScstTrainingArguments
from blip_recipe.pretraining.training_arguments import PretrainTrainingArguments
from blip_recipe.retrieval.training_arguments import RetrievalTrainingArguments
from blip_recipe.vqa.training_arguments import VqaTrainingArguments

if TYPE_CHECKING:
    from blip_recipe.recipe.arguments import TaskName
    from blip_recipe.training.training_arguments import BlipTrainingArguments

TRAINING_ARGUMENTS: dict[TaskName, dict[str, type[BlipTrainingArguments]]] = {
    "captioning": {"xe": CaptionTrainingArguments, "scst": ScstTrainingArguments},
    "vqa": {"xe": VqaTrainingArguments},
    "retrieval": {"xe": RetrievalTrainingArguments},
    "pretrain": {"xe": PretrainTrainingArguments},
}
