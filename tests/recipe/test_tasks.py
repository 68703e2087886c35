"""What all tasks share: a run is known by its task's defaults, adapters are merged, no key passes for another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from captioners import write_recipe
from commands import run_module
from safetensors.torch import load_file

from blip_recipe import schema
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.arguments import TASKS, FinetuneOptions, recorded_task
from blip_recipe.recipe.checks import check_recipe
from blip_recipe.recipe.output_dir import find_run, record_run
from blip_recipe.recipe.parser import OFF, is_off
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.recipe.recipe import Recipe
from blip_recipe.recipe.tasks import find_task


def read(*words: str | Path) -> Recipe[FinetuneOptions]:
    return read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=list(map(str, words)))


def test_a_run_goes_on_with_what_its_task_takes_for_granted(tmp_path: Path) -> None:
    words = ("recipes/shapes_vqa.json", "--output_dir", tmp_path)
    record_run(read(*words), {}, finished=False)
    (tmp_path / "checkpoint-1").mkdir()
    assert find_run(read(*words, "--generation_max_length", "10")).given
    with pytest.raises(RecipeError, match=r"generation_max_length \(was 10, is 12\)"):
        find_run(read(*words, "--generation_max_length", "12"))


def test_a_run_goes_on_with_the_lengths_that_followed_its_data(tmp_path: Path) -> None:
    """Its own `recipe.json` gives them, and is the same recipe; other lengths are another one."""
    words = ("recipes/my_folder.json", "--output_dir", tmp_path)
    fitted = {"max_caption_length": 40, "generation_min_length": 2, "generation_max_length": 27}
    record_run(read(*words), fitted, finished=False)
    (tmp_path / "checkpoint-1").mkdir()
    given = [word for key, value in fitted.items() for word in (f"--{key}", str(value))]
    assert find_run(read(*words)).given
    assert find_run(read(*words, *given)).given
    with pytest.raises(RecipeError, match=r"generation_max_length \(was 27, is 30\)"):
        find_run(read(*words, *given, "--generation_max_length", "30"))


@pytest.mark.parametrize(
    ("recipe", "words", "says"),
    [
        (
            "shapes_vqa",
            ("--metrics", "cider"),
            "'cider', which this task does not have: expected some of vqa_accuracy, exact_match",
        ),
        ("shapes_tiny", ("--metrics", "recall"), "'recall', which this task does not have: expected some of bleu"),
        (
            "shapes_tiny",
            ("--queue_size", "10"),
            "queue_size is given, but task is 'captioning': it belongs to task 'retrieval'",
        ),
        ("shapes_vqa", ("--stage", "scst"), "stage is 'scst', but task is 'vqa': it belongs to 'captioning'"),
        (
            "shapes_vqa",
            ("--captions_per_image", "1"),
            "captions_per_image is given, but task is 'vqa': it belongs to task 'captioning'",
        ),
        ("vqav2", ("--streaming", "true"), "answer_list is 'train' and the training questions are a stream"),
        ("shapes_retrieval", ("--generation_num_beams", "2"), "generation_num_beams is given, but task is 'retrieval'"),
        ("shapes_tiny", ("--kl_coef", "0.1"), "kl_coef is given, but task is 'captioning': it belongs to stage 'scst'"),
        ("shapes_retrieval", ("--label_smoothing_factor", "0.1"), "label_smoothing_factor is 0.1"),
        ("shapes_retrieval", ("--save_only_model", "true"), "save_only_model is true"),
    ],
)
def test_keys_that_a_task_has_no_use_for_are_refused(recipe: str, words: tuple[str, ...], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        check_recipe(read(f"recipes/{recipe}.json", "--use_cpu=true", *words))


@pytest.mark.parametrize("value", OFF[1:])
def test_a_key_of_another_task_may_be_given_if_it_is_off(value: str, tmp_path: Path) -> None:
    read("recipes/shapes_tiny.json", "--use_cpu=true", "--kl_coef", value)
    (tmp_path / "recipe.json").write_text(json.dumps({"use_cpu": True, "kl_coef": value}))
    read(tmp_path / "recipe.json")
    assert all(map(is_off, schema.OFF))


@pytest.mark.parametrize("task", ["foo", ["vqa"], None, 3])
def test_a_task_that_a_strangers_recipe_names_must_exist(task: Any) -> None:
    with pytest.raises(RecipeError, match="expected one of captioning, vqa, retrieval"):
        recorded_task({"task": task})
    assert recorded_task({}) == "captioning"


@pytest.mark.parametrize("name", [name for name in TASKS if name != "pretrain"])  # which has no adapters
def test_an_adapter_of_any_task_is_merged(name: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from blip_recipe.models.adapters import name_stock_class
    from blip_recipe.models.processors import save_processor

    task = find_task(name)
    model, processor = task.build_tiny(["a red circle ?"], None)
    model.save_pretrained(tmp_path / "base")
    save_processor(processor, tmp_path / "base")
    config = LoraConfig(r=2, target_modules=task.trainer.model_class.lora_layers, init_lora_weights=False)
    adapter = get_peft_model(model, config)
    adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapter.save_pretrained(str(tmp_path / "adapter"))
    name_stock_class(tmp_path / "adapter", task.trainer.model_class.stock_class)
    save_processor(processor, tmp_path / "adapter")
    write_recipe(tmp_path / "adapter", task=name)
    done = run_module("blip_recipe.merge", tmp_path / "adapter", tmp_path / "merged")
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "merged"))
    assert before.keys() == after.keys()
    assert any(not before[key].equal(after[key]) for key in before)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == [
        task.trainer.model_class.stock_class.__name__
    ]
    assert "(merged)" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
