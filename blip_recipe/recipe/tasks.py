"""Find a task by its name in recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blip_recipe.captioning.task import Captioning
from blip_recipe.pretraining.task import Pretraining
from blip_recipe.retrieval.task import Retrieval
from blip_recipe.vqa.task import Answering

if TYPE_CHECKING:
    from blip_recipe.recipe.arguments import TaskName
    from blip_recipe.training.task import Task

CLASSES: dict[TaskName, type[Task]] = {
    "captioning": Captioning,
    "vqa": Answering,
    "retrieval": Retrieval,
    "pretrain": Pretraining,
}


def find_task(name: TaskName) -> Task:
    """The task of a name."""
    return CLASSES[name]()
