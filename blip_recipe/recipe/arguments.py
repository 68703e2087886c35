"""The keys of recipes: which classes of arguments make up the recipe of a task. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from blip_recipe.captioning.arguments import CaptionArguments, ScstArguments
from blip_recipe.data.arguments import CaptionDataArguments, DataArguments
from blip_recipe.errors import RecipeError
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.retrieval.arguments import RetrievalArguments, RetrievalModelArguments
from blip_recipe.training.arguments import BlipArguments
from blip_recipe.vqa.arguments import VqaArguments, VqaDataArguments, VqaModelArguments

if TYPE_CHECKING:
    from collections.abc import Mapping

TaskName = Literal["captioning", "vqa", "retrieval"]
Stage = Literal["xe", "scst"]


@dataclass
class TaskArguments:
    """What BLIP learns."""

    _argument_group_name = "task"

    task: TaskName = field(
        default="captioning",
        metadata={
            "help": "To write captions, to answer questions (vqa), or to find pictures of texts and texts of pictures "
            "(retrieval). --help --task TASK shows the keys of a task."
        },
    )
    stage: Stage = field(
        default="xe",
        metadata={
            "help": "captioning: cross entropy, or self-critical training (arXiv 1612.00563) of a model after that."
        },
    )


@dataclass
class FinetuneOptions:
    """Options of one start of `finetune`."""

    _argument_group_name = "command"

    dry_run: bool = field(default=False, metadata={"help": "Print the plan and stop before the first step."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start afresh instead of resuming."})
    hub_tag: str | None = field(default=None, metadata={"help": "Tag of the published commit, such as 'v1'."})


@dataclass
class EvaluateOptions:
    """Options of one start of `evaluate`."""

    _argument_group_name = "command"

    predictions: str | None = field(default=None, metadata={"help": "Captions to score, without any model."})
    references: str | None = field(default=None, metadata={"help": "Captions to score them against."})


class TaskKeys(NamedTuple):
    """The classes of arguments of a task, those of its trainer by stage."""

    model: type[ModelArguments]
    data: type[DataArguments]
    stages: dict[Stage, type[BlipArguments]]


TASKS: dict[TaskName, TaskKeys] = {
    "captioning": TaskKeys(ModelArguments, CaptionDataArguments, {"xe": CaptionArguments, "scst": ScstArguments}),
    "vqa": TaskKeys(VqaModelArguments, VqaDataArguments, {"xe": VqaArguments}),
    "retrieval": TaskKeys(RetrievalModelArguments, CaptionDataArguments, {"xe": RetrievalArguments}),
}


def names_of(*groups: Any) -> list[str]:
    """The keys of classes of arguments."""
    return [each.name for group in groups for each in dataclasses.fields(group) if each.init]


def owner_of(key: str) -> str | None:
    """The task, or the stage, that a key belongs to; None where there is no such key."""
    for task, keys in TASKS.items():
        for stage, arguments in keys.stages.items():
            if key in names_of(keys.model, keys.data, arguments):
                return f"task {task!r}" if stage == "xe" else f"stage {stage!r}"
    return None


def recorded_task(recipe: Mapping[str, Any]) -> TaskName:
    """The task in a model's own `recipe.json`, which may be anybody's.

    Raises:
        RecipeError: There is no such task.
    """
    task = recipe.get("task", "captioning")
    if not isinstance(task, str) or task not in TASKS:
        raise RecipeError(f"The model's recipe.json has the task {task!r:.50}: expected one of {', '.join(TASKS)}.")
    return cast("TaskName", task)
