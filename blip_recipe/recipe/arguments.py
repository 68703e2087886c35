"""List the argument classes that make up the recipe of each task."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from blip_recipe.captioning.arguments import CaptionArguments, ScstArguments
from blip_recipe.data.arguments import CaptionDataArguments, DataArguments
from blip_recipe.errors import RecipeError
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.pretraining.arguments import PretrainArguments
from blip_recipe.retrieval.arguments import RetrievalArguments, RetrievalModelArguments
from blip_recipe.training.arguments import BlipArguments
from blip_recipe.vqa.arguments import VqaArguments, VqaDataArguments, VqaModelArguments

# torch is not imported, so that `--help` is fast.

if TYPE_CHECKING:
    from collections.abc import Mapping

TaskName = Literal["captioning", "vqa", "retrieval", "pretrain"]
Stage = Literal["xe", "scst"]


@dataclass
class TaskArguments:
    """Which task BLIP is trained for."""

    _argument_group_name = "task"

    task: TaskName = field(
        default="captioning",
        metadata={
            "help": "Write captions (captioning), answer questions (vqa), find texts by image and images by text "
            "(retrieval), or pre-train a captioner and a matcher in one network (pretrain). --help --task TASK shows "
            "the keys of a task."
        },
    )
    stage: Stage = field(
        default="xe",
        metadata={
            "help": "For captioning: train with cross entropy (xe), or continue a trained model with self-critical "
            "training (scst, arXiv 1612.00563)."
        },
    )


@dataclass
class FinetuneOptions:
    """Options of `finetune` that are not part of the recipe it records."""

    _argument_group_name = "command"

    dry_run: bool = field(default=False, metadata={"help": "Print the plan and stop before the first step."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run in output_dir and start again, instead of resuming it."}
    )
    hub_tag: str | None = field(default=None, metadata={"help": "Tag of the published commit, such as 'v1'."})


@dataclass
class EvaluateOptions:
    """Options of `evaluate`."""

    _argument_group_name = "command"

    predictions: str | None = field(default=None, metadata={"help": "File of captions to score instead of a model."})
    references: str | None = field(default=None, metadata={"help": "File of reference captions for --predictions."})
    subset: bool = field(
        default=False,
        metadata={"help": "Score only the images that have a caption in --predictions."},
    )


class TaskKeys(NamedTuple):
    """The argument classes of a task; those of its trainer by stage."""

    model: type[ModelArguments]
    data: type[DataArguments]
    stages: dict[Stage, type[BlipArguments]]


TASKS: dict[TaskName, TaskKeys] = {
    "captioning": TaskKeys(ModelArguments, CaptionDataArguments, {"xe": CaptionArguments, "scst": ScstArguments}),
    "vqa": TaskKeys(VqaModelArguments, VqaDataArguments, {"xe": VqaArguments}),
    "retrieval": TaskKeys(RetrievalModelArguments, CaptionDataArguments, {"xe": RetrievalArguments}),
    "pretrain": TaskKeys(ModelArguments, CaptionDataArguments, {"xe": PretrainArguments}),
}


def names_of(*groups: Any) -> list[str]:
    """The keys of some argument classes."""
    return [each.name for group in groups for each in dataclasses.fields(group) if each.init]


def owner_of(key: str) -> str | None:
    """The task or stage that has a key, such as `task 'vqa'`; `None` if none has it."""
    for task, keys in TASKS.items():
        for stage, arguments in keys.stages.items():
            if key in names_of(keys.model, keys.data, arguments):
                return f"task {task!r}" if stage == "xe" else f"stage {stage!r}"
    return None


def recorded_task(recipe: Mapping[str, Any]) -> TaskName:
    """The task that a model's `recipe.json` records; the file is not trusted.

    Raises:
        RecipeError: The task does not exist.
    """
    task = recipe.get("task", "captioning")
    if not isinstance(task, str) or task not in TASKS:
        raise RecipeError(f"The model's recipe.json has the task {task!r:.50}: expected one of {', '.join(TASKS)}.")
    return cast("TaskName", task)
