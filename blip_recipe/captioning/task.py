"""The task that writes captions: BLIP's image-grounded decoder."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from blip_recipe.captioning.modeling import BlipForCaptioning, generate_captions
from blip_recipe.data.checks import caption_fault
from blip_recipe.data.dataset import caption_datasets
from blip_recipe.data.images import open_image
from blip_recipe.data.load import load_split, texts
from blip_recipe.metrics import CaptionScorer
from blip_recipe.models.tiny import build_tiny_blip
from blip_recipe.training.memory import choose_checkpointing, tokens_an_image
from blip_recipe.training.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.models.loading import CaptionSettings
    from blip_recipe.recipe.parsing import DataArguments, Recipe
    from blip_recipe.training.trainer import BlipTrainer


class CaptionedImages(Task):
    """A task whose rows are images with captions."""

    def load_split(self, arguments: DataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
        """Rows of `image`, `image_id` and `captions`."""
        return load_split(arguments, split, max_samples=max_samples)

    def row_fault(self, record: Mapping[str, Any]) -> str | None:
        """Whether a row has captions, and none that is a whole file."""
        return caption_fault(record["captions"])

    def words(self, rows: Dataset, arguments: DataArguments) -> Iterable[str]:
        """Captions as they are trained on, and the prompt."""
        return texts(rows, arguments)

    def datasets(self, splits: Mapping[str, Dataset], recipe: Recipe[Any], processor: BlipProcessor) -> dict[str, Any]:
        """`CaptionDataset`s."""
        return {**caption_datasets(splits, recipe.data, processor, recipe.training.seed)}


class Captioning(CaptionedImages):
    """Captions, by cross entropy or, in a second stage, for their own scores."""

    name = "captioning"
    model_class = BlipForCaptioning
    try_it = "caption {model} PICTURE_OR_FOLDER..."

    def check(self, recipe: Recipe[Any]) -> None:
        """Captions are learnt from streams too."""

    def build_tiny(self, words: Iterable[str], image_size: int | None) -> tuple[BlipForCaptioning, BlipProcessor]:
        """The embedded captioner."""
        return build_tiny_blip(words, image_size)

    def choose_checkpointing(
        self, model: Any, recipe: Recipe[Any], rows: Dataset, processor: BlipProcessor
    ) -> int | None:
        """By tracing a step."""
        return choose_checkpointing(model, recipe, tokens_an_image(recipe, rows, processor.tokenizer))

    def scorer(self, recipe: Recipe[Any]) -> CaptionScorer:
        """Of captions against references; what it needs is fetched now, not after hours of training."""
        scorer = CaptionScorer(recipe.generation.metrics)
        scorer.prepare()
        return scorer

    def trainer(self, recipe: Recipe[Any]) -> Callable[..., BlipTrainer]:
        """By the recipe's `stage`."""
        from blip_recipe.captioning.scst import SelfCriticalTrainer
        from blip_recipe.captioning.trainer import CaptionTrainer

        is_scst = recipe.objective.stage == "scst"
        return partial(SelfCriticalTrainer, objective=recipe.objective) if is_scst else CaptionTrainer

    def say(self, model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: CaptionSettings) -> str:
        """The caption of its picture."""
        pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
        return generate_captions(
            model,
            processor.tokenizer,
            pixel_values.to(model.device),
            prompt=settings.prompt,
            **settings.generate_kwargs(),
        )[0]
