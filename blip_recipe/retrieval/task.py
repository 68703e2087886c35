"""The task that finds pictures of texts and texts of pictures: BLIP's unimodal and image-grounded encoders."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from blip_recipe.captioning.task import CaptionedImages
from blip_recipe.data.images import open_image
from blip_recipe.errors import RecipeError
from blip_recipe.retrieval.modeling import BlipForRetrieval
from blip_recipe.retrieval.scoring import match_probabilities
from blip_recipe.retrieval.tiny import build_tiny_retriever
from blip_recipe.training.sharding import is_asked_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from transformers import BlipProcessor

    from blip_recipe.models.loading import CaptionSettings
    from blip_recipe.recipe.parsing import Recipe
    from blip_recipe.training.trainer import BlipTrainer


class Retrieval(CaptionedImages):
    """Which texts belong to which pictures."""

    name = "retrieval"
    model_class = BlipForRetrieval
    try_it = 'match {model} PICTURE "TEXT" ["TEXT"...]'

    def check(self, recipe: Recipe[Any]) -> None:
        """See that a pair is an image and one of its captions, and that weights are whole."""
        super().check(recipe)
        if is_asked_for(recipe.training):
            raise RecipeError(
                "task is 'retrieval' and FSDP is asked for, but momentum encoders are copies of whole weights: start "
                "several processes without FSDP (DistributedDataParallel)."
            )
        if recipe.data.captions_per_image != 1:
            raise RecipeError(
                f"task is 'retrieval' and captions_per_image is {recipe.data.captions_per_image}: expected 1. A pair "
                "is an image and one of its captions, drawn anew each epoch."
            )
        if recipe.training.label_smoothing_factor:
            raise RecipeError(
                f"task is 'retrieval' and label_smoothing_factor is {recipe.training.label_smoothing_factor:g}: its "
                "losses have none. Leave it out."
            )
        if recipe.model.quantization or recipe.training.save_only_model:
            key = "save_only_model" if recipe.training.save_only_model else f"load_in_{recipe.model.quantization}"
            raise RecipeError(
                f"task is 'retrieval' and {key} is true, but momentum encoders are mixed from all weights and are "
                "part of a checkpoint: leave it out."
            )

    def build_tiny(self, words: Iterable[str], image_size: int | None) -> tuple[BlipForRetrieval, BlipProcessor]:
        """The embedded model."""
        return build_tiny_retriever(words, image_size)

    def trainer(self, recipe: Recipe[Any]) -> Callable[..., BlipTrainer]:
        """`RetrievalTrainer` with the recipe's keys of retrieval."""
        from blip_recipe.retrieval.trainer import RetrievalTrainer

        return partial(RetrievalTrainer, objective=recipe.objective)

    def say(self, model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: CaptionSettings) -> str:
        """How likely its first caption is to match its picture."""
        pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
        found = match_probabilities(model, processor, pixel_values.to(model.device), row["captions"][:1])
        return f"{found.item():.4f}"

    def settings(self, recipe: Recipe[Any]) -> dict[str, str]:
        """What ITC and ITM depend on."""
        objective = recipe.objective
        return {
            "queue": f"{objective.queue_size:,} pairs",
            "momentum encoders": f"keep {objective.momentum:g} of their weights in a step",
            "soft targets": f"a share of {objective.alpha:g}, which grows over the first epoch",
            "hard negatives": "of all processes" if objective.negative_all_rank else "of the process's own batch",
        }

    def show(self, prediction: Mapping[str, Any]) -> Mapping[str, Any]:
        """The text that was found first in place of a caption."""
        shown = {key: prediction[key] for key in ("image_id", "scores")}
        return shown | {"caption": prediction["texts"][0], "references": prediction["captions"]}
