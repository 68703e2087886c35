"""Recipes are read in one way, and what is wrong with them is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blip_recipe.capfilt.arguments import CapFiltArguments, read_arguments
from blip_recipe.captioning.arguments import CaptionArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.arguments import TASKS, EvaluateOptions, FinetuneOptions, names_of
from blip_recipe.recipe.checks import check_recipe
from blip_recipe.recipe.file import packaged_recipes
from blip_recipe.recipe.other_names import NAMES, OTHER_NAMES
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.recipe.recipe import Recipe
from blip_recipe.recipe.training_arguments import TRAINING_ARGUMENTS

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
    "minimum over maximum": ({"generation_min_length": 30, "generation_max_length": 20}, "generation_min_length"),
    "no beams": ({"generation_num_beams": 0}, "generation_num_beams"),
    "a penalty of nothing": ({"generation_repetition_penalty": 0}, "generation_repetition_penalty"),
    "a negative size": ({"generation_no_repeat_ngram_size": -1}, "generation_no_repeat_ngram_size"),
    "lengths without beams": (
        {"generation_length_penalty": 2.0, "generation_num_beams": 1},
        "generation_length_penalty",
    ),
    "an end without beams": (
        {"generation_early_stopping": True, "generation_num_beams": 1},
        "generation_early_stopping is True, but generation_num_beams is 1",
    ),
    "no such end of the search": ({"generation_early_stopping": "always"}, "generation_early_stopping"),
    "a prompt that is counted, and none": (
        {"generation_length_penalty_counts_prompt": True},
        "generation_length_penalty_counts_prompt is true, but prompt is ''",
    ),
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


FORMS = ["file", "YAML", "command line", "none on the command line", "after an equals sign"]


def unset(form: str, key: str, value: Any, tmp_path: Path, **keys: Any) -> Recipe[FinetuneOptions]:
    """A recipe without a key that a file gives `value`: the file has null, or the command line takes it away."""
    path = tmp_path / ("recipe.yaml" if form == "YAML" else "recipe.json")
    plain = {"dataset_name": "lab/photos", "use_cpu": True} | keys
    if form == "YAML":
        path.write_text("\n".join(f"{name}: {json.dumps(each)}" for name, each in plain.items()) + f"\n{key}: ~\n")
    else:
        path.write_text(json.dumps(plain | {key: None if form == "file" else value}))
    words = {
        "command line": (f"--{key}", "null"),
        "none on the command line": (f"--{key}", "None"),
        "after an equals sign": (f"--{key.replace('_', '-')}=null",),
    }
    return parse(path, *words.get(form, ()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("key", "value", "nothing", "keys"),
    [
        ("eval_split", "validation", None, {}),
        ("max_train_samples", 5, None, {}),
        ("save_total_limit", 7, None, {}),
        ("captions_per_image", 2, None, {}),
        ("torch_empty_cache_steps", 3, None, {}),
        ("caption_column", ["a", "b"], None, {}),
        ("lora_target_modules", ["query"], None, {"use_peft": True}),
        ("bf16", False, False, {}),
        ("greater_is_better", True, None, {}),
        ("use_peft", True, False, {}),
        ("prompt", "a picture of ", "", {}),
        ("lr_scheduler_kwargs", {"num_cycles": 1}, None, {}),
        ("hub_private_repo", True, None, {}),
        ("report_to", "trackio", [], {}),
    ],
)
def test_a_key_is_unset_in_the_file_and_on_the_command_line(
    form: str, key: str, value: Any, nothing: Any, keys: dict[str, Any], tmp_path: Path
) -> None:
    recipe = unset(form, key, value, tmp_path, **keys)
    assert recipe.value_of(key) == nothing
    # What the run records does not bring it back.
    again = tmp_path / "again.json"
    again.write_text(json.dumps(recipe.to_json()))
    second = parse(again)
    assert second.value_of(key) == nothing
    assert second.given | {"output_dir": ""} == recipe.given | {"output_dir": ""}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 0.1),
        ("lora_r", 8),
        ("seed", 1),
        ("train_split", "train"),
        ("model_name_or_path", "lab/blip"),
        ("output_dir", "outputs/here"),
        ("metrics", ["cider"]),
        ("normalize_captions", True),
        ("eval_strategy", "epoch"),
    ],
)
def test_a_key_that_needs_a_value_cannot_be_unset(form: str, key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"^{key} is (null|None), but it cannot be unset. Give it another value"):
        unset(form, key, value, tmp_path)


def test_none_is_a_value_where_the_key_has_it(write: Any) -> None:
    assert parse(write(augmentation="blip"), "--augmentation", "none").training.augmentation == "none"
    assert parse(write(), "--report_to", "none").training.report_to == []


def test_logs_go_to_no_tracker_to_one_or_to_several(write: Any) -> None:
    assert parse(write()).training.report_to == []
    assert parse(write(report_to="tensorboard")).training.report_to == ["tensorboard"]
    assert parse(write(report_to=["tensorboard", "trackio"])).training.report_to == ["tensorboard", "trackio"]
    assert parse(write(), "--report_to", "tensorboard", "trackio").training.report_to == ["tensorboard", "trackio"]


def test_the_model_that_an_evaluation_reads_has_no_revision_if_that_is_unset(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"model_name_or_path": "lab/blip", "model_revision": "v1", "use_cpu": True}))
    seen: list[dict[str, str]] = []
    read_recipe(
        EvaluateOptions,
        prog="",
        description="",
        recipe_needed=False,
        argv=[str(path), "--model_revision", "null"],
        recorded=lambda keys: seen.append(keys) or {},  # type: ignore[func-returns-value]
    )
    assert seen == [{"model_name_or_path": "lab/blip"}]


@pytest.mark.parametrize(
    ("other", "meant"),
    [
        ("lr", "'learning_rate'"),
        ("batch_size", "'per_device_train_batch_size'"),
        ("train_batch_size", "'per_device_train_batch_size'"),
        ("epochs", "'num_train_epochs'"),
        ("num_epochs", "'num_train_epochs'"),
        ("max_new_tokens", "'generation_max_length'"),
        ("max_length", "'max_caption_length' or 'generation_max_length'"),
        ("min_length", "'generation_min_length'"),
        ("num_beams", "'generation_num_beams'"),
        ("model", "'model_name_or_path'"),
        ("dataset", "'dataset_name'"),
        ("split", "'train_split' or 'eval_split' or 'test_split'"),
        ("lora_rank", "'lora_r'"),
        ("lora-target", "'lora_target_modules'"),
        ("warmup", "'warmup_steps'"),
        ("Mixed_Precision", "'fp16' or 'bf16'"),
        ("repo_id", "'hub_model_id'"),
        ("lora_rnak", "'lora_r'"),
    ],
)
def test_the_hint_knows_what_other_tools_call_a_key(other: str, meant: str, write: Any) -> None:
    with pytest.raises(RecipeError, match=rf"there is no key '{other}'\. Did you mean {meant}\?"):
        parse(write(**{other: 1}))
    if other != "model":  # which is a spelling of the key on the command line
        with pytest.raises(RecipeError, match=rf"Did you mean {meant}\?"):
            parse(write(), f"--{other}", "1")


def test_every_other_name_leads_to_keys_that_exist() -> None:
    every = {*names_of(CapFiltArguments), *names_of(FinetuneOptions)}
    for task, keys in TASKS.items():
        for stage in keys.stages:
            every |= {*names_of(keys.model, keys.data, TRAINING_ARGUMENTS[task][stage])}
    assert set(NAMES) <= every
    assert OTHER_NAMES["revision"] == ["model_revision", "dataset_revision"]


def test_capfilt_has_hints_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    for other, meant in (
        ("generation_max_length", "'max_length'"),
        ("threshold", "'filter_threshold'"),
        ("fp16", "'bf16'"),
    ):
        path.write_text(json.dumps({"dataset_name": "lab/web", other: 1}))
        with pytest.raises(RecipeError, match=rf"Did you mean {meant}\?"):
            read_arguments([str(path)])
    path.write_text(json.dumps({"dataset_name": "lab/web", "max_samples": 5, "captioner_revision": "v1"}))
    arguments = read_arguments([str(path), "--max_samples", "null", "--captioner_revision=none"])
    assert (arguments.max_samples, arguments.captioner_revision) == (None, None)
