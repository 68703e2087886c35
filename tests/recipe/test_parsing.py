"""Recipes are read in one way, and what is wrong with them is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blip_recipe.captioning.arguments import CaptionArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.arguments import EvaluateOptions, FinetuneOptions, names_of
from blip_recipe.recipe.checks import check_recipe
from blip_recipe.recipe.file import packaged_recipes
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.recipe.recipe import Recipe

RECIPES = [
    path
    for path in packaged_recipes()
    if "filter_threshold" not in json.loads(path.read_text())  # read by another command, and in tests/test_capfilt.py
]


def parse(*words: str | Path) -> Recipe[FinetuneOptions]:
    return read_recipe(FinetuneOptions, prog="finetune", description="", recipe_needed=True, argv=[*map(str, words)])


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(**keys: Any) -> Path:
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({"dataset_name": "shapes", "model_name_or_path": "tiny", **keys}))
        return path

    return write_recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_travels_with_the_package_is_sound(path: Path) -> None:
    recipe = parse(path)
    check_recipe(recipe)
    assert recipe.output_dir == Path("outputs", path.stem)


def test_the_command_line_overrides_the_file(write: Any) -> None:
    recipe = parse(write(lora_r=4, num_train_epochs=2, freeze_vision=True), "--lora_r", "8", "--num-train-epochs=1.5")
    assert (recipe.model.lora_r, recipe.training.num_train_epochs, recipe.model.freeze_vision) == (8, 1.5, True)


def test_values_keep_their_types(write: Any) -> None:
    recipe = parse(
        write(
            caption_column=["a", "b"],
            prompt="- a picture of ",
            captions_per_image=None,
            normalize_captions=False,
            lr_scheduler_kwargs={"num_cycles": 0.25},
            learning_rate=3e-4,
        )
    )
    assert isinstance(recipe.data, CaptionDataArguments)
    assert recipe.data.caption_column == ["a", "b"]
    assert recipe.training.prompt == "- a picture of "
    assert recipe.training.captions_per_image is None
    assert recipe.training.normalize_captions is False
    assert recipe.training.lr_scheduler_kwargs == {"num_cycles": 0.25}
    assert recipe.training.learning_rate == 3e-4


def test_the_resolved_recipe_gives_the_same_recipe_again(write: Any, tmp_path: Path) -> None:
    first = parse(write(metrics=["bleu"], prompt="a "), "--seed", "7", "--output_dir", tmp_path / "deep" / "run")
    again = tmp_path / "again.json"
    again.write_text(json.dumps(first.to_json(model_revision="abc")))
    second = parse(again)
    assert (second.data, second.task.trainer, second.stage) == (first.data, first.task.trainer, first.stage)
    for key in names_of(CaptionArguments):
        assert getattr(second.training, key) == getattr(first.training, key)
    assert second.training.seed == 7
    assert second.model.model_revision == "abc"
    assert second.training.output_dir == "outputs/run"


def test_trainers_own_push_stays_off(write: Any) -> None:
    recipe = parse(write(push_to_hub=True))
    assert recipe.push_to_hub
    assert not recipe.training.push_to_hub


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"lora_rank": 4}, "lora_r"),
    "misspelt trainer key": ({"learning_rte": 1}, "learning_rate"),
    "wrong type": ({"num_train_epochs": "three"}, "num_train_epochs"),
    "not an integer": ({"lora_r": 1.5}, "lora_r"),
    "no such choice": ({"augmentation": "heavy"}, "augmentation"),
    "no such metric": ({"metrics": ["bleu", "blue"]}, "blue"),
    "minimum over maximum": ({"generation_min_length": 30}, "generation_min_length"),
    "no beams": ({"generation_num_beams": 0}, "generation_num_beams"),
    "token in a recipe": ({"hub_token": "hf_x"}, "HF_TOKEN"),
    "both precisions": ({"load_in_8bit": True, "load_in_4bit": True, "model_name_or_path": "x"}, "choose one"),
    "quantised without adapter": ({"load_in_8bit": True, "model_name_or_path": "x"}, "use_peft"),
    "adapter of a new model": ({"use_peft": True}, "shapes_lora"),
    "nothing to merge": ({"merge_adapter": True}, "use_peft"),
    "no data": ({"dataset_name": None}, "dataset_name"),
    "evaluation without split": ({"eval_strategy": "epoch"}, "eval_split"),
    "best by an unknown score": ({"metric_for_best_model": "cidre", "eval_split": "validation"}, "cidre"),
    "best by a score not asked for": (
        {"metric_for_best_model": "bleu_4+meteor", "eval_strategy": "epoch", "eval_split": "validation"},
        "meteor",
    ),
    "no captions": ({"captions_per_image": 0}, "captions_per_image"),
    "no such checkpoint": ({"resume_from_checkpoint": "nowhere"}, "nowhere"),
    "trainer refuses": (
        {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "epoch", "eval_split": "test"},
        "strategy",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_refused_with_what_is_wrong(write: Any, name: str) -> None:
    keys, expected = WRONG[name]
    with pytest.raises(RecipeError, match=expected) as error:
        check_recipe(parse(write(**keys)))
    assert "hf_x" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"), [("{", "JSON"), ("[1]", "object"), ('{"lora_r": }', "JSON"), ("\x00", "JSON")]
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=expected):
        parse(path)


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"shapes_tiny\.json"):
        parse(tmp_path / "missing.json")


def test_an_unknown_word_on_the_command_line_names_the_nearest_key(write: Any) -> None:
    with pytest.raises(RecipeError, match="learning_rate"):
        parse(write(), "--learning_rat", "3")


def test_evaluate_needs_no_recipe_file_and_takes_its_keys() -> None:
    recipe = read_recipe(
        EvaluateOptions,
        prog="evaluate",
        description="",
        recipe_needed=False,
        argv=["--model", "some/model", "--eval_split", "test", "--per_device_eval_batch_size", "3"],
    )
    assert recipe.model.model_name_or_path == "some/model"
    assert recipe.training.per_device_eval_batch_size == 3
    assert "prompt" not in recipe.given
