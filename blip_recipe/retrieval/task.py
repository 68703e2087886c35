"""The retrieval task of recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from blip_recipe.data.captions import validate_captions
from blip_recipe.data.load import load_split, vocabulary_texts
from blip_recipe.errors import RecipeError
from blip_recipe.retrieval.tiny import build_tiny_retriever
from blip_recipe.retrieval.trainer import RetrievalTrainer
from blip_recipe.training.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.data.arguments import CaptionDataArguments, DataArguments
    from blip_recipe.models.arguments import ModelArguments
    from blip_recipe.retrieval.modeling import BlipForRetrieval
    from blip_recipe.training.arguments import BlipArguments


class Retrieval(Task):
    """Image-text retrieval."""

    trainer = RetrievalTrainer

    def check(self, model: ModelArguments, data: DataArguments, training: Any) -> None:
        """Check that texts have neither prompts nor groups."""
        super().check(model, data, training)
        for name, column in cast("CaptionDataArguments", data).text_columns().items():
            raise RecipeError(
                f"task is 'retrieval' and {name}_column is {column!r}, but all texts of the split are matched, without "
                "a prompt: leave it out."
            )

    def load_split(self, arguments: CaptionDataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
        """Load rows of `image`, `image_id` and `captions`."""
        return load_split(arguments, split, max_samples=max_samples)

    def validate_row(self, record: Mapping[str, Any]) -> str | None:
        """Check that a row has captions and that none is too long."""
        return validate_captions(record["captions"])

    def vocabulary_texts(self, rows: Dataset, arguments: BlipArguments, *, drawn: bool) -> Iterable[str]:
        """The training captions."""
        return vocabulary_texts(rows, normalize=arguments.normalize_captions, drawn=drawn)

    def build_tiny(self, texts: Iterable[str], image_size: int | None) -> tuple[BlipForRetrieval, BlipProcessor]:
        """Build the tiny model."""
        return build_tiny_retriever(texts, image_size)
