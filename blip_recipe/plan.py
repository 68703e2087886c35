"""The plan of a run, as `--dry_run` prints it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from torch import nn
    from transformers import BlipConfig

    from blip_recipe.recipe import FinetuneOptions, Recipe

GIB = 2**30
FLOAT = 4
"""Bytes of a float32 number."""


def format_plan(
    recipe: Recipe[FinetuneOptions], model: nn.Module, splits: Mapping[str, Dataset], repo_id: str | None
) -> str:
    """What the run will do, one fact a line."""
    captions = {role: sum(map(len, rows["captions"])) for role, rows in splits.items()}
    trainable, total = count_parameters(model)
    images = recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps * recipe.training.world_size
    steps = recipe.training.max_steps
    if steps <= 0:
        steps = math.ceil(recipe.training.num_train_epochs * math.ceil(len(splits["train"]) / images))
    per_image = recipe.data.captions_per_image or captions["train"] / len(splits["train"])
    memory = estimate_peak_bytes(model, cast("Any", model.config), recipe.training.train_batch_size, per_image)
    lines = {
        "model": f"{recipe.model.model_name_or_path}, {trainable:,} of {total:,} parameters trained",
        **{role: f"{len(rows):,} images, {captions[role]:,} captions" for role, rows in splits.items()},
        "steps": f"{steps:,}, each {images:,} images with about {images * per_image:,.0f} captions",
        "memory": f"about {memory / GIB:.1f} GiB at the peak of a step, for each process",
        "output": recipe.training.output_dir,
        "push": repo_id or "nowhere (push_to_hub is false)",
    }
    return "\n".join(f"{name:<8}{text}" for name, text in lines.items())


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; a 4-bit weight counts as what it stands for."""
    sizes = [
        (p.requires_grad, p.numel() * (2 if p.__class__.__name__ == "Params4bit" else 1)) for p in model.parameters()
    ]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)


def estimate_peak_bytes(model: nn.Module, config: BlipConfig, images: int, captions_per_image: float) -> float:
    """Bytes of weights, gradients, Adam's two moments and the activations of a step, without gradient checkpointing.

    Activations are counted for attention that keeps no map: about 16 values of the layer's width a patch in the image
    encoder (two norms, qkv, attention, two residuals, twice the four-fold feed-forward), about 26 a token in the text
    decoder, and four tables of logits. An image encoder without trained parameters keeps one layer's worth.
    """
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    vision, text = cast("Any", config.vision_config), cast("Any", config.text_config)
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    vision_trained = any(p.requires_grad for name, p in model.named_parameters() if "vision_model" in name)
    vision_layers = vision.num_hidden_layers if vision_trained else 1
    tokens = images * captions_per_image * 16
    activations = images * patches * vision.hidden_size * 16 * vision_layers
    activations += tokens * (text.hidden_size * 26 * text.num_hidden_layers + 4 * text.vocab_size)
    return stored + 3 * FLOAT * trained + FLOAT * activations
