"""What a task brings to the commands that train, score, describe and publish a BLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

from blip_recipe.errors import RecipeError
from blip_recipe.recipe.task_keys import TASKS, TaskName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.models.attention import StockModel
    from blip_recipe.models.loading import CaptionSettings
    from blip_recipe.recipe.parsing import DataArguments, Recipe
    from blip_recipe.training.trainer import BlipTrainer


class Task(ABC):
    """One of the things that BLIP learns: its rows, its model, its trainer, and how its results are shown.

    Attributes:
        name: As recipes name it.
        model_class: Ours, with the weights of a stock class.
        key: The column of rows that names them in predictions.
        texts: The column of rows with what is learnt, a list in each.
        try_it: The command line that uses a finished model, after `python -m blip_recipe.` and with `{model}` in it.
    """

    name: ClassVar[TaskName]
    model_class: ClassVar[type[StockModel]]
    key: ClassVar[str] = "image_id"
    texts: ClassVar[str] = "captions"
    try_it: ClassVar[str]

    def check(self, recipe: Recipe[Any]) -> None:
        """Find what this task cannot do, before anything is read.

        Raises:
            RecipeError: Names the key.
        """
        if recipe.data.is_streamed:
            raise RecipeError(
                f"task is {self.name!r} and streaming is true, but only captions are learnt from a stream: leave "
                "streaming out."
            )

    @abstractmethod
    def load_split(self, arguments: DataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
        """A split of the recipe's data set: `image`, `image_id`, the columns `key` and `texts`, and others of the task.

        Raises:
            RecipeError: There is no such data set, split or column, or the split is empty.
        """

    @abstractmethod
    def row_fault(self, record: Mapping[str, Any]) -> str | None:
        """What is wrong with the texts of a row, if anything is."""

    @abstractmethod
    def words(self, rows: Dataset, arguments: DataArguments) -> Iterable[str]:
        """Texts with every word that a tokenizer for `rows` must know."""

    @abstractmethod
    def build_tiny(self, words: Iterable[str], image_size: int | None) -> tuple[Any, BlipProcessor]:
        """The embedded model, new, with a vocabulary made from `words`, and its processor."""

    def choose_checkpointing(
        self, model: Any, recipe: Recipe[Any], rows: Dataset, processor: BlipProcessor
    ) -> int | None:
        """The bytes of a step on `rows` at its peak; nothing where no task has a way to find them out.

        Gradient checkpointing is switched on where a step would not fit, unless the recipe decides it.
        """
        return None

    @abstractmethod
    def datasets(self, splits: Mapping[str, Dataset], recipe: Recipe[Any], processor: BlipProcessor) -> dict[str, Any]:
        """The splits as the trainer reads them; each has its `rows`, and `set_epoch` where it draws."""

    def scorer(self, recipe: Recipe[Any]) -> AbstractContextManager[Any]:
        """What the trainer scores with, where that has to be fetched, kept or closed."""
        return no_scorer()

    @abstractmethod
    def trainer(self, recipe: Recipe[Any]) -> Callable[..., BlipTrainer]:
        """The trainer, to be called as `BlipTrainer` is, without a collator."""

    @abstractmethod
    def say(self, model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: CaptionSettings) -> str:
        """What a model says of a row: a trained model and the one that was published of it must say the same."""

    def settings(self, recipe: Recipe[Any]) -> dict[str, str]:
        """What the result depends on besides what all tasks have, by label, in words, for the card."""
        return {}

    def show(self, prediction: Mapping[str, Any]) -> Mapping[str, Any]:
        """A line of `predictions.jsonl` as pictures and cards show it: `caption`, `references`, `scores`, and `key`."""
        return prediction


@contextmanager
def no_scorer() -> Iterator[None]:
    """Nothing to fetch, keep or close."""
    yield None


def recorded_task(recipe: Mapping[str, Any]) -> TaskName:
    """The task in a model's own `recipe.json`, which may be anybody's.

    Raises:
        RecipeError: There is no such task.
    """
    task = recipe.get("task", "captioning")
    if not isinstance(task, str) or task not in TASKS:
        raise RecipeError(f"The model's recipe.json has the task {task!r:.50}: expected one of {', '.join(TASKS)}.")
    return cast("TaskName", task)


def find_task(name: TaskName) -> Task:
    """The task of a name."""
    module, _, kind = TASKS[name].place.partition(":")
    task: Task = getattr(import_module(module), kind)()
    return task
