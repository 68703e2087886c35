"""Refuse keys that have no effect without another key, such as `lora_r` without `use_peft`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blip_recipe.data.arguments import SHAPES
from blip_recipe.errors import RecipeError
from blip_recipe.models.arguments import TINY_MODEL
from blip_recipe.recipe.parser import UNSET, is_off

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from blip_recipe.recipe.recipe import Recipe


class Need(NamedTuple):
    """What some keys need to have an effect.

    Attributes:
        keys: The keys.
        partners: The keys that decide. If one of them is given and turned off, the keys may stand: a recipe is then
            run with a part of it turned off, as by `--push_to_hub false`.
        is_met: Whether the keys have an effect.
        remedy: What to do for them to have it.
    """

    keys: tuple[str, ...]
    partners: tuple[str, ...]
    is_met: Callable[[Recipe[Any]], bool]
    remedy: str


def is_evaluated(recipe: Recipe[Any]) -> bool:
    """Whether the model is evaluated during training."""
    return recipe.training.eval_strategy != "no"


def is_scored(recipe: Recipe[Any]) -> bool:
    """Whether there are images to score: a split of their own, or training images that are held out."""
    return recipe.data.has_split("eval") or recipe.data.has_split("test")


def is_sharded(recipe: Recipe[Any]) -> bool:
    """Whether the recipe or the launcher asks for FSDP."""
    from blip_recipe.training.sharding import is_fsdp_requested

    return is_fsdp_requested(recipe.training)


def is_local(name: str | None) -> bool:
    """Whether the name of a model or a data set is a path."""
    return Path(str(name)).expanduser().exists()


RANKING_NEEDS = (
    Need(
        ("rank_top_k", "rank_by"),
        ("answer_list",),
        lambda recipe: getattr(recipe.training, "answer_list", None) is not None,
        "Set answer_list",
    ),
    Need(
        ("answer_min_questions",),
        ("answer_list",),
        lambda recipe: getattr(recipe.training, "answer_list", None) == "train",
        "Set answer_list to 'train'",
    ),
)
"""The keys that rank a list of answers."""

SCORE_NEEDS = (
    Need(
        ("clip_model_name_or_path",),
        ("metrics",),
        lambda recipe: getattr(recipe.training, "uses_clip", False),
        "Add clip_score, ref_clip_score or self_retrieval to metrics",
    ),
    Need(
        ("itm_model_name_or_path",),
        ("metrics", "self_retrieval_by"),
        lambda recipe: getattr(recipe.training, "uses_matcher", False),
        "Add itm_score to metrics, or self_retrieval with self_retrieval_by 'itc'",
    ),
    Need(
        ("self_retrieval_by",),
        ("metrics",),
        lambda recipe: "self_retrieval" in recipe.training.metrics,
        "Add self_retrieval to metrics",
    ),
    Need(
        ("chair_instances", "chair_synonyms"),
        ("metrics",),
        lambda recipe: "chair" in recipe.training.metrics,
        "Add chair to metrics",
    ),
)
"""The keys of scores beyond words."""

NEEDS = (
    *RANKING_NEEDS,
    *SCORE_NEEDS,
    Need(
        ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "use_rslora", "merge_adapter"),
        ("use_peft",),
        lambda recipe: recipe.model.use_peft,
        "Set use_peft to true",
    ),
    Need(
        ("model_revision",),
        ("model_name_or_path",),
        lambda recipe: recipe.model.model_name_or_path != TINY_MODEL and not is_local(recipe.model.model_name_or_path),
        "Name a model on the Hub",
    ),
    Need(
        ("dataset_revision",),
        ("dataset_name",),
        lambda recipe: recipe.data.dataset_name != SHAPES and not is_local(recipe.data.dataset_name),
        "Name a data set on the Hub",
    ),
    Need(
        ("dataset_config_name",),
        ("dataset_name",),
        lambda recipe: not Path(str(recipe.data.dataset_name)).expanduser().is_file(),
        "Name a data set that has configurations",
    ),
    Need(
        (
            "image_column",
            "caption_column",
            "question_column",
            "answer_column",
            "answer_weight_column",
            "image_id_column",
            "image_root",
            "caption_lines",
            "prompt_column",
            "group_column",
        ),
        ("dataset_name",),
        lambda recipe: recipe.data.dataset_name != SHAPES,
        "Name a data set that is read",
    ),
    Need(
        ("train_split",),
        ("dataset_mixture",),
        lambda recipe: not recipe.data.mixture,
        "Make it a key of a data set of the mixture",
    ),
    Need(
        ("streaming",),
        ("dataset_name",),
        lambda recipe: recipe.data.is_streamed or recipe.data.max_train_samples is not None,
        "Name a data set on the Hub, or a directory",
    ),
    Need(
        ("shuffle_buffer_size",),
        ("streaming", "max_train_samples"),
        lambda recipe: recipe.data.is_streamed,
        "Set streaming to true, without max_train_samples",
    ),
    Need(
        (
            *("metrics", "bootstrap_resamples", "max_eval_samples", "allow_shared_images", "answer_list"),
            *("group_column", "report", "push_report"),
        ),
        ("eval_split", "test_split"),
        is_scored,
        "Set one of them, or validation_fraction or test_fraction",
    ),
    Need(
        ("split_seed",),
        ("validation_fraction", "test_fraction"),
        lambda recipe: bool(recipe.data.held_out()),
        "Set one of them",
    ),
    Need(
        ("eval_on_start",),
        ("eval_split",),
        lambda recipe: recipe.data.has_split("eval"),
        "Set eval_split or validation_fraction",
    ),
    Need(
        ("eval_metrics", "eval_delay", "metric_for_best_model"),
        ("eval_strategy",),
        is_evaluated,
        "Set eval_strategy to 'epoch' or 'steps'",
    ),
    Need(
        ("eval_steps",),
        ("eval_strategy",),
        lambda recipe: recipe.training.eval_strategy == "steps",
        "Set eval_strategy to 'steps'",
    ),
    Need(
        ("save_steps",),
        ("save_strategy",),
        lambda recipe: recipe.training.save_strategy == "steps",
        "Set save_strategy to 'steps'",
    ),
    Need(
        ("logging_steps",),
        ("logging_strategy",),
        lambda recipe: recipe.training.logging_strategy == "steps",
        "Set logging_strategy to 'steps'",
    ),
    Need(
        ("greater_is_better",),
        ("metric_for_best_model",),
        lambda recipe: recipe.training.metric_for_best_model is not None,
        "Set metric_for_best_model",
    ),
    Need(
        ("warmup_steps",),
        ("lr_scheduler_type",),
        lambda recipe: recipe.training.lr_scheduler_type not in ("constant", "reduce_lr_on_plateau"),
        "Set lr_scheduler_type to 'constant_with_warmup', or to another one that warms up",
    ),
    Need(
        ("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        ("dataloader_num_workers",),
        lambda recipe: recipe.training.dataloader_num_workers > 0,
        "Set dataloader_num_workers",
    ),
    Need(
        ("generation_length_penalty_counts_prompt",),
        ("prompt",),
        lambda recipe: bool(getattr(recipe.training, "prompt", "") or getattr(recipe.data, "prompt_column", None)),
        "Set prompt",
    ),
    Need(
        ("fsdp_config",),
        ("fsdp",),
        is_sharded,
        "Set fsdp to true",
    ),
    Need(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ("report_to",),
        lambda recipe: "trackio" in recipe.training.report_to,
        "Set report_to to trackio",
    ),
    Need(
        ("tracked_pictures",),
        ("report_to", "eval_strategy"),
        lambda recipe: bool(recipe.training.report_to) and is_evaluated(recipe),
        "Set report_to and eval_strategy",
    ),
    Need(
        ("hub_model_id", "hub_strategy", "hub_revision", "hub_always_push"),
        ("push_to_hub",),
        lambda recipe: recipe.push_to_hub,
        "Set push_to_hub to true",
    ),
)
"""The keys of a recipe that have an effect only together with another.

Keys that a later push reads (`hub_private_repo`, `hub_tag`), and keys of speed and memory, are not among them.
"""


def check_effects(recipe: Recipe[Any], needs: Sequence[Need] = NEEDS) -> None:
    """Check that every key that is given, and not turned off, has an effect.

    A key of the file is dropped if the command line changes what it needs.

    Raises:
        RecipeError: A key has none. The message names the key, what it needs, and what to do.
    """
    for need in needs:
        is_met = need.is_met(recipe)
        if not is_met and any(key in recipe.overrides for key in need.partners):
            # `--eval_strategy epoch` beside the eval_steps of a file: the command line takes the file's key away.
            for key in set(need.keys) - set(recipe.overrides):
                recipe.given.pop(key, None)
        given = [key for key in need.keys if not is_off(recipe.given.get(key))]
        is_turned_off = any(key in recipe.given and is_no(recipe.given[key]) for key in need.partners)
        if given and not is_turned_off and not is_met:
            key = given[0]
            partners = " and ".join(f"{each} is {show(recipe.value_of(each))}" for each in need.partners)
            raise RecipeError(
                f"{key} is {show(recipe.given[key])}, but {partners}, so that it has no effect. {need.remedy}, or "
                f"leave {key} out."
            )


def is_no(value: Any) -> bool:
    """Whether a value turns off a key that decides about others; `no` does so for strategies."""
    return str(value).lower() in ("", "no", *UNSET, "false")


def show(value: Any) -> str:
    """A value in a message: text in quotes, all else as in JSON."""
    plain = value.value if isinstance(value, Enum) else value
    return repr(plain) if isinstance(plain, str) else json.dumps(plain, default=str)
