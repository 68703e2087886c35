"""What captioning brings to recipes: BLIP's image-grounded decoder writes captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blip_recipe.captioning.scst import ScstTrainer
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.data.checks import validate_captions
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
    """Captions, by cross entropy or, in a second stage, for their own scores."""

    trainer = CaptionTrainer

    def trainer_of(self, stage: str) -> type[BlipTrainer]:
        """By cross entropy (`xe`), or self-critical (`scst`)."""
        return ScstTrainer if stage == "scst" else CaptionTrainer

    def check(self, model: ModelArguments, data: DataArguments, training: Any) -> None:
        """Captions are learnt from streams too, but for their own scores."""
        if not data.is_streamed:
            return
        if isinstance(training, ScstTrainer.arguments_class):
            raise RecipeError(
                "stage is 'scst' and streaming is true, but self-critical training counts the words of all captions "
                "first: leave one of them out."
            )
        for key in ("image_cache", "cache_image_embeds"):
            if getattr(training, key):
                raise RecipeError(
                    f"{key} keeps pictures on the disk, which streaming is to spare: leave one of them out."
                )

    def load_split(self, arguments: CaptionDataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
        """Rows of `image`, `image_id` and `captions`."""
        return load_split(arguments, split, max_samples=max_samples)

    def validate_row(self, record: Mapping[str, Any]) -> str | None:
        """Whether a row has captions, and none that is a whole file."""
        return validate_captions(record["captions"])

    def vocabulary_texts(  # type: ignore[override]
        self, rows: Dataset, arguments: CaptionArguments, *, drawn: bool
    ) -> Iterable[str]:
        """Captions as they are trained on, and the prompt."""
        return vocabulary_texts(rows, normalize=arguments.normalize_captions, prompt=arguments.prompt, drawn=drawn)

    def build_tiny(self, texts: Iterable[str], image_size: int | None) -> tuple[BlipForCaptioning, BlipProcessor]:
        """The embedded captioner."""
        return build_tiny_captioner(texts, image_size)
