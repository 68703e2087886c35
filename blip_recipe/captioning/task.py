"""The captioning task of recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from blip_recipe.captioning.scst import ScstTrainer
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.data.captions import validate_captions
from blip_recipe.data.load import load_split, vocabulary_texts
from blip_recipe.errors import RecipeError
from blip_recipe.training.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.captioning.arguments import CaptionArguments
    from blip_recipe.captioning.modeling import BlipForCaptioning
    from blip_recipe.data.arguments import CaptionDataArguments, DataArguments
    from blip_recipe.models.arguments import ModelArguments
    from blip_recipe.training.trainer import BlipTrainer


class Captioning(Task):
    """Captioning, trained with cross entropy and optionally with a self-critical second stage."""

    trainer = CaptionTrainer

    def trainer_of(self, stage: str) -> type[BlipTrainer]:
        """The trainer of cross entropy (`xe`) or of self-critical training (`scst`)."""
        return ScstTrainer if stage == "scst" else CaptionTrainer

    def check(self, model: ModelArguments, data: DataArguments, training: Any) -> None:
        """Check that keys which exclude each other are not combined.

        These are two prompts, streams with caches, and self-critical training with a stream or with dropout.
        """
        super().check(model, data, training)
        _check_prompts(cast("CaptionDataArguments", data).prompt_column, training)
        if model.dropouts and isinstance(training, ScstTrainer.arguments_class):
            key, value = next(iter(model.dropouts.items()))
            raise RecipeError(
                f"stage is 'scst' and {key} is {value:g}, but self-critical training samples without dropout: leave it "
                "out."
            )
        if data.is_streamed and isinstance(training, ScstTrainer.arguments_class):
            raise RecipeError(
                "stage is 'scst' and streaming is true, but self-critical training counts the n-grams of all captions "
                "first: leave one of them out."
            )

    def load_split(self, arguments: CaptionDataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
        """Load rows of `image`, `image_id` and `captions`."""
        return load_split(arguments, split, max_samples=max_samples)

    def validate_row(self, record: Mapping[str, Any]) -> str | None:
        """Check that a row has captions and that none is too long."""
        return validate_captions(record["captions"])

    def vocabulary_texts(  # type: ignore[override]
        self, rows: Dataset, arguments: CaptionArguments, *, drawn: bool
    ) -> Iterable[str]:
        """The training captions, with the prompt."""
        return vocabulary_texts(
            rows,
            normalize=arguments.normalize_captions,
            max_words=arguments.max_words,
            prompt=arguments.prompt,
            drawn=drawn,
        )

    def build_tiny(self, texts: Iterable[str], image_size: int | None) -> tuple[BlipForCaptioning, BlipProcessor]:
        """Build the tiny captioner."""
        return build_tiny_captioner(texts, image_size)


def _check_prompts(prompt_column: str | None, training: Any) -> None:
    """Check that images have prompts of their own only where there is no other, and no self-critical training."""
    if prompt_column is None:
        return
    if training.prompt:
        raise RecipeError(
            f"prompt is {training.prompt!r} and prompt_column is {prompt_column!r}: use only one of them."
        )
    if isinstance(training, ScstTrainer.arguments_class):
        raise RecipeError(
            f"stage is 'scst' and prompt_column is {prompt_column!r}, but self-critical training samples all captions "
            "from one prompt: leave one of them out."
        )
