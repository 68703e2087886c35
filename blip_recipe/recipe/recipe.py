"""Define the parsed recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from blip_recipe.recipe.arguments import EvaluateOptions, FinetuneOptions, TaskArguments

if TYPE_CHECKING:
    from collections.abc import Collection

    from blip_recipe.data.arguments import DataArguments
    from blip_recipe.models.arguments import ModelArguments
    from blip_recipe.training.task import Task
    from blip_recipe.training.trainer import BlipTrainer

ONE_START_KEYS = (
    "dry_run",
    "overwrite_output_dir",
    "hub_tag",
    "resume_from_checkpoint",
    "logging_dir",
    "predictions",
    "references",
    "subset",
)
"""Keys that apply to one start of a command, and are not recorded."""

Options = TypeVar("Options", FinetuneOptions, EvaluateOptions)


@dataclass
class Recipe(Generic[Options]):
    """A parsed recipe.

    Attributes:
        model: Which model is trained, and which of its weights.
        data: Where the rows come from.
        training: The arguments of the task's trainer.
        options: Options of this start of the command.
        task: The task that the model is trained for.
        stage: Cross entropy (`xe`) or self-critical training (`scst`).
        given: The keys that the user gave, in the file or on the command line.
        push_to_hub: Whether the result is pushed.
        overrides: The keys that the command line sets.
    """

    model: ModelArguments
    data: DataArguments
    training: Any
    options: Options
    task: Task
    stage: str
    given: dict[str, Any]
    push_to_hub: bool
    overrides: Collection[str] = ()

    @property
    def output_dir(self) -> Path:
        """The directory of the run's files."""
        return Path(str(self.training.output_dir))

    @property
    def trainer(self) -> type[BlipTrainer]:
        """The trainer of the task and the stage."""
        return self.task.trainer_of(self.stage)

    @property
    def pushes_checkpoints(self) -> bool:
        """Whether checkpoints are pushed too: only if `hub_strategy` is given, whatever Trainer's default is."""
        return self.push_to_hub and "hub_strategy" in self.given and self.training.hub_strategy != "end"

    def value_of(self, key: str) -> Any:
        """The value of a key; its default if it was not given."""
        if key == "push_to_hub":
            return self.push_to_hub
        groups = (self.model, self.data, self.options, self.training)
        return next(getattr(group, key) for group in groups if hasattr(group, key))

    def default_of(self, key: str) -> Any:
        """The default of a key."""
        for group in (self.model, self.data, self.options, self.training, TaskArguments()):
            for each in dataclasses.fields(cast("Any", group)):
                if each.name == key:
                    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        return None

    def to_json(self, **resolved: Any) -> dict[str, Any]:
        """The recipe to record: the given keys, with `resolved` values (pinned revisions, full repository name)."""
        lasting = {key: value for key, value in self.given.items() if key not in ONE_START_KEYS}
        recipe = lasting | {key: value for key, value in resolved.items() if value is not None}
        # The full path is private; its last part is enough to run the recipe again.
        return recipe | {"output_dir": f"outputs/{self.output_dir.name}"}
