"""Format the plan of a run, which `--dry_run` prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from blip_recipe.models.stock import count_parameters
from blip_recipe.training.memory import describe_peak

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from blip_recipe.data.shards import ShardedSplit
    from blip_recipe.recipe.arguments import FinetuneOptions
    from blip_recipe.recipe.recipe import Recipe


def format_plan(
    recipe: Recipe[FinetuneOptions],
    model: nn.Module,
    counts: Mapping[str, tuple[int, int]],
    repo_id: str | None,
    peak: int | None,
    *,
    images_per_epoch: int,
    stream: ShardedSplit | None = None,
    skipped: int = 0,
    notes: Sequence[str] = (),
) -> str:
    """Describe the run, one fact a line.

    Args:
        recipe: The recipe.
        model: The model to train.
        counts: Numbers of rows and texts of each split by role; of a stream, those of its first rows.
        repo_id: Repository that the result is pushed to.
        peak: Memory of a training step in bytes.
        images_per_epoch: The number of rows of an epoch.
        stream: The training split, if it is read while training.
        skipped: Number of rows that cannot be used.
        notes: Sentences on the data.
    """
    words = recipe.trainer.task
    trainable, total = count_parameters(model)
    images = recipe.training.train_batch_size * recipe.training.gradient_accumulation_steps * recipe.training.world_size
    steps = recipe.training.max_steps
    if steps <= 0:
        steps = math.ceil(recipe.training.num_train_epochs * math.ceil(images_per_epoch / images))
    per_image = getattr(recipe.training, "captions_per_image", None) or counts["train"][1] / counts["train"][0]
    lines = {
        "model": f"{recipe.model.model_name_or_path}, {trainable:,} of {total:,} parameters trained",
        **{role: f"{rows:,} {words.row}s, {texts:,} {words.text}s" for role, (rows, texts) in counts.items()},
        **({"train": f"a stream of {stream.describe()}"} if stream else {}),
        **({"skipped": f"{skipped:,} rows that cannot be used (on_bad_image is skip)"} if skipped else {}),
        "steps": f"{steps:,}, each {images:,} {words.row}s with about {images * per_image:,.0f} {words.text}s",
        **describe_lengths(recipe.training),
        "memory": describe_peak(recipe.training, peak),
        "output": recipe.training.output_dir,
        "push": repo_id or "nowhere (push_to_hub is false)",
    }
    noted = [("data", note) for note in notes] + [("texts", note) for note in recipe.training.text_notes or []]
    return "\n".join(f"{name:<8}{text}" for name, text in (*lines.items(), *noted))


def describe_lengths(training: Any) -> dict[str, str]:
    """The lengths that follow the data, if the task has them."""
    if not training.fitted_keys:
        return {}
    shortest, longest = training.generation_min_length, training.generation_max_length
    return {
        "lengths": f"training captions of up to {training.max_caption_length} tokens, generated ones of {shortest} to "
        f"{longest}"
    }
