"""What a task brings to recipes: its rows, its embedded model and its trainers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.data.arguments import DataArguments
    from blip_recipe.models.arguments import ModelArguments
    from blip_recipe.training.arguments import BlipArguments
    from blip_recipe.training.trainer import BlipTrainer


class Task(ABC):
    """Something that BLIP learns.

    Attributes:
        trainer: The trainer of the task, or of its first stage.
    """

    trainer: ClassVar[type[BlipTrainer]]

    def trainer_of(self, stage: str) -> type[BlipTrainer]:
        """The trainer of a stage."""
        return self.trainer

    def check(self, model: ModelArguments, data: DataArguments, training: Any) -> None:
        """Find what this task cannot do, before anything is read.

        Raises:
            RecipeError: Names the key.
        """
        if data.is_streamed:
            raise RecipeError(
                f"task is {self.trainer.task.name!r} and streaming is true, but only captions are learnt from a "
                "stream: leave streaming out."
            )

    @abstractmethod
    def load_split(self, arguments: Any, split: str, *, max_samples: int | None = None) -> Dataset:
        """A split of a recipe's data set: `image`, `image_id`, the texts that are learnt, and others of the task.

        Raises:
            RecipeError: There is no such data set, split or column, or the split is empty.
        """

    @abstractmethod
    def validate_row(self, record: Mapping[str, Any]) -> str | None:
        """What is wrong with the texts of a row, if anything is."""

    @abstractmethod
    def vocabulary_texts(self, rows: Dataset, arguments: BlipArguments, *, drawn: bool) -> Iterable[str]:
        """Texts with every word that a tokenizer for `rows` must know; all words of drawn scenes where `rows` are."""

    @abstractmethod
    def build_tiny(self, texts: Iterable[str], image_size: int | None) -> tuple[Any, BlipProcessor]:
        """The embedded model, new, with a vocabulary made from `texts`, and its processor."""
