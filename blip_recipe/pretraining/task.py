"""The pre-training task of recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from blip_recipe.data.captions import validate_captions
from blip_recipe.data.load import load_split, vocabulary_texts
from blip_recipe.errors import RecipeError
from blip_recipe.pretraining.tiny import build_tiny_pretrained
from blip_recipe.pretraining.trainer import PretrainTrainer
from blip_recipe.training.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.data.arguments import CaptionDataArguments, DataArguments
    from blip_recipe.models.arguments import ModelArguments
    from blip_recipe.pretraining.arguments import PretrainArguments
    from blip_recipe.pretraining.modeling import BlipForPretraining


class Pretraining(Task):
    """Pre-training with ITC, ITM and language modelling."""

    trainer = PretrainTrainer

    def check(self, model: ModelArguments, data: DataArguments, training: Any) -> None:
        """Check that all weights are trained."""
        super().check(model, data, training)
        if model.use_peft:
            raise RecipeError(
                "task is 'pretrain' and use_peft is true, but pre-training trains all weights: leave use_peft out, and "
                "train an adapter on the result."
            )

        if prompt_column := cast("CaptionDataArguments", data).prompt_column:
            raise RecipeError(
                f"task is 'pretrain' and prompt_column is {prompt_column!r}, but pre-training has no prompts: leave it "
                "out."
            )

    def load_split(self, arguments: CaptionDataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
        """Load rows of `image`, `image_id` and `captions`."""
        return load_split(arguments, split, max_samples=max_samples)

    def validate_row(self, record: Mapping[str, Any]) -> str | None:
        """Check that a row has captions and that none is too long."""
        return validate_captions(record["captions"])

    def vocabulary_texts(  # type: ignore[override]
        self, rows: Dataset, arguments: PretrainArguments, *, drawn: bool
    ) -> Iterable[str]:
        """The training captions."""
        return vocabulary_texts(
            rows, normalize=arguments.normalize_captions, max_words=arguments.max_words, drawn=drawn
        )

    def build_tiny(self, texts: Iterable[str], image_size: int | None) -> tuple[BlipForPretraining, BlipProcessor]:
        """Build the tiny model."""
        return build_tiny_pretrained(texts, image_size)
