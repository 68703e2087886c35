"""A key without effect is refused, and stands where it has one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip_recipe import schema
from blip_recipe.errors import RecipeError
from blip_recipe.evaluate import FILE_NEEDS
from blip_recipe.recipe.arguments import EvaluateOptions, FinetuneOptions
from blip_recipe.recipe.checks import check_recipe
from blip_recipe.recipe.effects import NEEDS, check_effects
from blip_recipe.recipe.parser import unset_values
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.recipe.recipe import Recipe

PLAIN: dict[str, Any] = {"model_name_or_path": "lab/blip", "dataset_name": "lab/photos", "use_cpu": True}
SHAPES = {"dataset_name": "shapes"}
TINY = {"model_name_or_path": "tiny"}
VQA = {"task": "vqa"}
EVALUATED = {"eval_split": "validation", "eval_strategy": "epoch"}

EFFECTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "lora_r": (8, {}, {"use_peft": True}),
    "lora_alpha": (8, {}, {"use_peft": True}),
    "lora_dropout": (0.1, {}, {"use_peft": True}),
    "lora_target_modules": (["query"], {}, {"use_peft": True}),
    "use_dora": (True, {}, {"use_peft": True}),
    "use_rslora": (True, {}, {"use_peft": True}),
    "merge_adapter": (True, {}, {"use_peft": True}),
    "model_revision": ("main", TINY, {"model_name_or_path": "lab/blip"}),
    "dataset_revision": ("main", SHAPES, {"dataset_name": "lab/photos"}),
    "dataset_config_name": ("en", {"dataset_name": "{file}"}, {"dataset_name": "lab/photos"}),
    "image_column": ("picture", SHAPES, {"dataset_name": "lab/photos"}),
    "caption_column": (["text"], SHAPES, {"dataset_name": "lab/photos"}),
    "question_column": ("q", SHAPES | VQA, {"dataset_name": "lab/photos"}),
    "answer_column": ("a", SHAPES | VQA, {"dataset_name": "lab/photos"}),
    "answer_weight_column": ("w", SHAPES | VQA, {"dataset_name": "lab/photos"}),
    "answer_list": ("train", VQA, {"test_split": "test"}),
    "rank_top_k": (5, VQA, {"answer_list": "train", "test_split": "test"}),
    "rank_by": ("likelihood", VQA, {"answer_list": "train", "test_split": "test"}),
    "answer_min_questions": (3, VQA, {"answer_list": "train", "test_split": "test"}),
    "image_id_column": ("id", SHAPES, {"dataset_name": "lab/photos"}),
    "prompt_column": ("start", SHAPES, {"dataset_name": "lab/photos"}),
    "group_column": ("domain", SHAPES, {"dataset_name": "lab/photos", "test_split": "test"}),
    "train_split": ("train[:9]", {"dataset_mixture": {"lab/web": 1.0}}, {"dataset_mixture": None}),
    "image_root": ("photos", SHAPES, {"dataset_name": "lab/photos"}),
    "caption_lines": (True, SHAPES, {"dataset_name": "lab/photos"}),
    "streaming": (True, SHAPES, {"dataset_name": "lab/photos"}),
    "shuffle_buffer_size": (10, {}, {"streaming": True}),
    "metrics": (["cider"], {}, {"test_split": "test"}),
    "bootstrap_resamples": (200, {}, {"test_split": "test"}),
    "clip_model_name_or_path": ("lab/clip", {}, {"metrics": ["clip_score"], "test_split": "test"}),
    "itm_model_name_or_path": ("lab/itm", {}, {"metrics": ["itm_score"], "test_split": "test"}),
    "self_retrieval_by": ("clip", {}, {"metrics": ["self_retrieval"], "test_split": "test"}),
    "chair_instances": (
        ["{file}"],
        {},
        {"metrics": ["chair"], "chair_synonyms": "{file}", "test_split": "test"},
    ),
    "chair_synonyms": ("{file}", {}, {"metrics": ["chair"], "chair_instances": ["{file}"], "test_split": "test"}),
    "max_eval_samples": (10, {}, {"eval_split": "validation"}),
    "report": (True, {}, {"test_split": "test"}),
    "push_report": (True, {}, {"test_split": "test"}),
    "allow_shared_images": (True, {}, {"test_split": "test"}),
    "split_seed": (1, {}, {"test_fraction": 0.1}),
    "eval_on_start": (True, {}, EVALUATED),
    "eval_metrics": (["bleu"], {}, EVALUATED),
    "eval_delay": (2, {}, EVALUATED),
    "metric_for_best_model": ("cider", {}, EVALUATED),
    "eval_steps": (50, EVALUATED, {"eval_strategy": "steps"}),
    "save_steps": (50, {}, {"save_strategy": "steps"}),
    "logging_steps": (50, {"logging_strategy": "epoch"}, {"logging_strategy": "steps"}),
    "greater_is_better": (True, EVALUATED, {"metric_for_best_model": "cider"}),
    "warmup_steps": (10, {"lr_scheduler_type": "constant"}, {"lr_scheduler_type": "constant_with_warmup"}),
    "dataloader_multiprocessing_context": ("fork", {"dataloader_num_workers": 0}, {"dataloader_num_workers": 1}),
    "generation_length_penalty_counts_prompt": (True, {}, {"prompt": "a picture of "}),
    "fsdp_config": ({"fsdp_version": 2}, {}, {"fsdp": True}),
    "trackio_space_id": ("lab/runs", {}, {"report_to": "trackio"}),
    "trackio_bucket_id": ("lab/runs", {}, {"report_to": "trackio"}),
    "trackio_static_space_id": ("lab/runs", {}, {"report_to": "trackio"}),
    "tracked_pictures": (4, {}, EVALUATED | {"report_to": "tensorboard"}),
    "hub_model_id": ("lab/mine", {}, {"push_to_hub": True}),
    "hub_strategy": ("end", {}, {"push_to_hub": True}),
    "hub_revision": ("main", {}, {"push_to_hub": True}),
    "hub_always_push": (True, {}, {"push_to_hub": True}),
}
"""A value of each key, keys with which it has no effect, and those with which it has."""

OTHERWISE_REFUSED = {"hub_revision": "is pushed to main", "fsdp_config": "there is one process"}
"""Keys that have an effect, but are refused for another reason here."""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_recipe(**keys: Any) -> Path:
        (tmp_path / "captions.json").write_text("{}")
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(PLAIN | keys).replace("{file}", str(tmp_path / "captions.json")))
        return path

    return write_recipe


def parse(*words: str | Path) -> Recipe[FinetuneOptions]:
    return read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=[*map(str, words)])


def test_the_table_here_is_that_of_the_package() -> None:
    # Trainer refuses a prefetch factor without workers by itself.
    named = {key for need in NEEDS for key in need.keys} - {"dataloader_prefetch_factor"}
    assert set(EFFECTS) == named


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_is_refused_alone_and_stands_with_what_it_needs(key: str, write: Write) -> None:
    value, without, partner = EFFECTS[key]
    with pytest.raises(RecipeError, match=f"^{key} is .*, but .*, so that it has no effect. .*, or leave {key} out.$"):
        check_recipe(parse(write(**without, **{key: value})))
    path = write(**{**without, **partner, key: value})
    if key in OTHERWISE_REFUSED:
        with pytest.raises(RecipeError, match=OTHERWISE_REFUSED[key]):
            check_recipe(parse(path))
    else:
        check_recipe(parse(path))


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_that_is_off_may_stand_anywhere(key: str, write: Write) -> None:
    value, without, _ = EFFECTS[key]
    off = False if isinstance(value, bool) else None
    unset = unset_values(type(group) for group in groups_of(parse(write(**without))))
    if key in unset or off is False:
        check_recipe(parse(write(**without, **{key: off})))
    else:
        with pytest.raises(RecipeError, match=f"{key} is null, but it cannot be unset"):
            parse(write(**without, **{key: off}))


def groups_of(recipe: Recipe[Any]) -> list[Any]:
    return [recipe.model, recipe.data, recipe.training, recipe.options]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--lora_r", "8"), "lora_r is 8, but use_peft is false, so that it has no effect. Set use_peft to true"),
        (("--eval_steps", "8"), "eval_steps is 8.0, but eval_strategy is 'no', so that"),
        (("--metrics", "cider"), r"metrics is \[\"cider\"\], but eval_split is null and test_split is null, so that"),
        (("--streaming", "true", "--max_train_samples", "5", "--shuffle_buffer_size", "9"),
         "shuffle_buffer_size is 9, but streaming is true and max_train_samples is 5"),
    ],
)  # fmt: skip
def test_the_message_shows_what_was_read(words: tuple[str, ...], says: str, write: Write) -> None:
    with pytest.raises(RecipeError, match=says):
        check_recipe(parse(write(), *words))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"use_peft": True, "lora_r": 8, "merge_adapter": True}, ("--use_peft", "false")),
        ({"push_to_hub": True, "hub_model_id": "lab/mine"}, ("--push_to_hub", "false")),
        ({**EVALUATED, "eval_strategy": "steps", "eval_steps": 5}, ("--eval_strategy", "no")),
        ({**EVALUATED, "metrics": ["cider"]}, ("--eval_split", "null", "--eval_strategy", "no")),
        ({"save_strategy": "steps", "save_steps": 5}, ("--save_strategy", "no")),
    ],
)
def test_a_part_of_a_recipe_may_be_turned_off(keys: dict[str, Any], words: tuple[str, ...], write: Write) -> None:
    check_recipe(parse(write(**keys)))
    recipe = parse(write(**keys), *words)
    check_recipe(recipe)
    assert not recipe.model.merge_adapter
    # What such a run records can be run again.
    again = write()
    again.write_text(json.dumps(recipe.to_json()))
    check_recipe(parse(again))


def test_an_evaluation_ignores_what_has_an_effect_on_training_alone(write: Write) -> None:
    path = write(lora_r=8, save_steps=5, shuffle_buffer_size=9, eval_split="test")
    with pytest.raises(RecipeError, match="lora_r is 8"):
        check_recipe(parse(path))

    def evaluation(*words: str) -> Recipe[EvaluateOptions]:
        return read_recipe(EvaluateOptions, prog="", description="", recipe_needed=False, argv=[str(path), *words])

    check_effects(evaluation("--lora_alpha", "4"), FILE_NEEDS)
    with pytest.raises(RecipeError, match=r"references is 'c\.json', but predictions is null, so that"):
        check_effects(evaluation("--references", "c.json"), FILE_NEEDS)


def test_keys_that_the_schema_lets_be_null_are_those_that_can_be_unset() -> None:
    properties = schema.finetune_properties()["captioning"]
    groups = [type(group) for group in groups_of(parse("recipes/shapes_tiny.json", "--use_cpu=true"))]
    may_be_null = {
        key for key, each in properties.items() if None in each.get("enum", ()) or "null" in each.get("type", ())
    }
    assert may_be_null == set(unset_values(groups)) & set(properties)


def test_the_command_line_may_change_what_a_key_of_the_file_needs(write: Write) -> None:
    file = write(**EVALUATED | {"eval_strategy": "steps", "eval_steps": 50, "save_strategy": "steps", "save_steps": 50})
    recipe = parse(file, "--eval_strategy", "epoch", "--save_strategy", "epoch")
    check_recipe(recipe)
    # What such a run records can be run again.
    file.write_text(json.dumps(recipe.to_json()))
    check_recipe(parse(file))
    with pytest.raises(RecipeError, match=r"eval_steps is 20\.0, but eval_strategy is 'epoch'"):
        check_recipe(parse(file, "--eval_strategy", "epoch", "--eval_steps", "20"))
