"""The tasks by the names that recipes have for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from blip_recipe.captioning.task import Captioning
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.arguments import TASKS, TaskName
from blip_recipe.retrieval.task import Retrieval
from blip_recipe.vqa.task import Answering

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blip_recipe.training.task import Task

KNOWN: dict[TaskName, type[Task]] = {"captioning": Captioning, "vqa": Answering, "retrieval": Retrieval}


def find_task(name: TaskName) -> Task:
    """The task of a name."""
    return KNOWN[name]()


def recorded_task(recipe: Mapping[str, Any]) -> TaskName:
    """The task in a model's own `recipe.json`, which may be anybody's.

    Raises:
        RecipeError: There is no such task.
    """
    task = recipe.get("task", "captioning")
    if not isinstance(task, str) or task not in TASKS:
        raise RecipeError(f"The model's recipe.json has the task {task!r:.50}: expected one of {', '.join(TASKS)}.")
    return cast("TaskName", task)
