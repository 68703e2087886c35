"""The interface between recipes and a task: its rows, its tiny model and its trainers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from blip_recipe.data.shards import open_stream
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.data.arguments import DataArguments
    from blip_recipe.data.shards import ShardedSplit
    from blip_recipe.models.arguments import ModelArguments
    from blip_recipe.training.arguments import BlipArguments
    from blip_recipe.training.trainer import BlipTrainer


class Task(ABC):
    """A task that a recipe can train.

    Attributes:
        trainer: The trainer of the task, or of its first stage.
    """

    trainer: ClassVar[type[BlipTrainer]]

    def trainer_of(self, stage: str) -> type[BlipTrainer]:
        """The trainer class of a stage."""
        return self.trainer

    def check(self, model: ModelArguments, data: DataArguments, training: Any) -> None:
        """Check the arguments before anything is read.

        Raises:
            RecipeError: The task does not support a value; the message names its key.
        """
        for key in ("image_cache", "cache_image_embeds") if data.is_streamed else ():
            if getattr(training, key, None):
                raise RecipeError(f"{key} and streaming are both given: a stream is not cached. Use only one of them.")

    @abstractmethod
    def load_split(self, arguments: Any, split: str, *, max_samples: int | None = None) -> Dataset:
        """Load a split of a recipe's data set: `image`, `image_id`, and the columns of the task.

        Raises:
            RecipeError: There is no such data set, split or column, or the split is empty.
        """

    def open_stream(self, arguments: Any) -> ShardedSplit:
        """Open the training split of a recipe's data set as a stream; by default, one of images with captions.

        Raises:
            RecipeError: There is no such data set, split or column, or it cannot be streamed.
        """
        return open_stream(arguments)

    @abstractmethod
    def validate_row(self, record: Mapping[str, Any]) -> str | None:
        """Why the texts of a row cannot be used; None if they can."""

    def has_references(self, rows: Dataset) -> bool:
        """Whether a split can be scored; without references, only its texts are written."""
        return True

    def prepare_scoring(self, data: Any, training: Any) -> None:  # noqa: B027 - most tasks need nothing
        """Read what scores need besides the scored split, for an evaluation without training.

        Raises:
            RecipeError: It cannot be read.
        """

    @abstractmethod
    def vocabulary_texts(self, rows: Dataset, arguments: BlipArguments, *, drawn: bool) -> Iterable[str]:
        """Texts for the vocabulary of a new tokenizer: those of `rows`, or of all possible scenes if `drawn`."""

    @abstractmethod
    def build_tiny(self, texts: Iterable[str], image_size: int | None) -> tuple[Any, BlipProcessor]:
        """Build a tiny model with new weights and a vocabulary from `texts`, and its processor."""
