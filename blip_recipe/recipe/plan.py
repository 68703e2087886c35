"""The plan of a run, as `--dry_run` prints it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from blip_recipe.recipe.task_keys import TASK_WORDS
from blip_recipe.training.memory import describe_peak

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from blip_recipe.data.shards import ShardedSplit
    from blip_recipe.recipe.parsing import FinetuneOptions, Recipe


def format_plan(
    recipe: Recipe[FinetuneOptions],
    model: nn.Module,
    counts: Mapping[str, tuple[int, int]],
    repo_id: str | None,
    peak: int | None,
    stream: ShardedSplit | None = None,
    skipped: int = 0,
) -> str:
    """What the run will do, one fact a line; `peak` is the memory of a step in bytes, `skipped` a number of rows.

    `counts` has rows and texts of each split by role, of a `stream` those of the first rows of `train`.
    """
    words = TASK_WORDS[recipe.objective.task]
    trainable, total = count_parameters(model)
    images = recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps * recipe.training.world_size
    steps = recipe.training.max_steps
    if steps <= 0:
        steps = math.ceil(recipe.training.num_train_epochs * math.ceil(counts["train"][0] / images))
    per_image = recipe.data.captions_per_image or counts["train"][1] / counts["train"][0]
    lines = {
        "model": f"{recipe.model.model_name_or_path}, {trainable:,} of {total:,} parameters trained",
        **{role: f"{rows:,} {words.row}s, {texts:,} {words.text}s" for role, (rows, texts) in counts.items()},
        **({"train": f"a stream of {stream.describe()}"} if stream else {}),
        **({"skipped": f"{skipped:,} rows that cannot be used (on_bad_image is skip)"} if skipped else {}),
        "steps": f"{steps:,}, each {images:,} {words.row}s with about {images * per_image:,.0f} {words.text}s",
        "memory": describe_peak(recipe.training, peak),
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
