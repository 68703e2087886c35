"""Recipe files: JSON and YAML of one recipe are the same run, and a file that is wrong is named with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from captioners import draw_pictures
from hypothesis import given
from hypothesis import strategies as st

from blip_recipe.capfilt.arguments import read_arguments
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.file import find_recipe, load_recipe, packaged_recipes
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.recipe.recipe import Recipe


def parse(*arguments: str | Path) -> Recipe[FinetuneOptions]:
    return read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=[*map(str, arguments)])


def everything(recipe: Recipe[FinetuneOptions]) -> dict[str, Any]:
    """All that a run depends on."""
    parts = (recipe.model, recipe.data, recipe.options)
    return {
        **{key: value for part in parts for key, value in vars(part).items()},
        **recipe.training.to_dict(),
        "given": recipe.given,
        "task": type(recipe.task),
        "stage": recipe.stage,
        "push_to_hub": recipe.push_to_hub,
    }


@pytest.mark.parametrize("path", packaged_recipes(), ids=lambda path: path.stem)
def test_a_packaged_recipe_in_yaml_is_the_same_recipe(path: Path, tmp_path: Path) -> None:
    content = load_recipe(path)
    copy = tmp_path / f"{path.stem}.yaml"
    copy.write_text("# A comment.\n" + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    if "filter_threshold" in content:
        assert read_arguments([str(copy)]) == read_arguments([str(path)])
    else:
        assert everything(parse(copy)) == everything(parse(path))


TRAPS = """\
# yaml-language-server: $schema=recipe.schema.json
$schema: recipe.schema.json
dataset_name: shapes
model_name_or_path: tiny
learning_rate: 1e-3          # text in YAML 1.1, which wants 1.0e-3
weight_decay: .5
warmup_steps: 1_0
eval_strategy: no            # false in YAML 1.1
augmentation: none
use_peft: off
push_to_hub: No
freeze_vision: Yes
normalize_captions: true
prompt: "a picture of "
model_revision: 0123456      # an octal number in YAML 1.1
dataset_revision: 1234e56
hub_tag: 2026-01-01          # a date in YAML 1.1
run_name: 12:30:45
save_total_limit:
data_seed: ~
metrics: [bleu, cider]
caption_column:
  - "yes"
  - on
lr_scheduler_kwargs: {num_cycles: 0.25, min_lr: 1e-6, cycles: 2, flag: true, name: cosine}
"""


def test_the_traps_of_yaml_are_none(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(TRAPS.replace("use_peft: off\n", "use_peft: no\n"), encoding="utf-8")
    recipe = parse(path)
    training = recipe.training
    assert (training.learning_rate, training.weight_decay, training.warmup_steps) == (0.001, 0.5, 10)
    assert (training.eval_strategy, training.augmentation, training.prompt) == ("no", "none", "a picture of ")
    assert (recipe.model.use_peft, recipe.push_to_hub, recipe.model.freeze_vision) == (False, False, True)
    assert (recipe.model.model_revision, recipe.data.dataset_revision) == ("0123456", "1234e56")
    assert (recipe.options.hub_tag, training.run_name) == ("2026-01-01", "12:30:45")
    assert (training.save_total_limit, training.data_seed) == (None, None)
    assert training.metrics == ["bleu", "cider"]
    assert vars(recipe.data)["caption_column"] == ["yes", "on"]
    assert training.lr_scheduler_kwargs == {
        "num_cycles": 0.25,
        "min_lr": 1e-6,
        "cycles": 2,
        "flag": True,
        "name": "cosine",
    }
    assert "$schema" not in recipe.to_json()
    path.write_text(TRAPS, encoding="utf-8")
    with pytest.raises(RecipeError, match="got off but expected one of yes/no"):
        parse(path)


@given(st.text())
def test_quoted_text_is_kept(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    for style in ("'", '"'):
        path.write_text(yaml.safe_dump({"prompt": text, "list": [text]}, default_style=style), encoding="utf-8")
        assert load_recipe(path) == {"prompt": text, "list": [text]}


WRONG = {
    "a key twice": ("seed: 1\n\nseed: 2\n", "line 3, column 1: the key 'seed' is given twice"),
    "a tab": ("seed: 1\n\tlora_r: 2\n", "line 2, column 1: .*cannot start any token"),
    "no end": ('seed: 1\nprompt: "a picture\n', "line 3, column 1: .*unexpected end of stream"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "line 2, column 1: .*another document"),
    "a list": ("- seed: 1\n", "holds a YAML list: expected one flat object"),
    "nothing": ("# only a comment\n", "is empty: expected one flat object"),
    "a class": ("seed: !!python/object:os.system {}\n", "line 1, column 7: the tag .* is not allowed"),
    "an alias": ("a: &a [x]\nb: *a\n", "line 1, column 4: an alias .* write it out"),
    "an alias of itself": ("a: &a [*a]\n", "write it out"),
    "a list for a key": ("[a, b]: 1\n", "line 1, column 1: a key must be a name"),
    "nested without end": ("[" * 20_000, "nested too deeply"),
    "a control character": ("a: b\nc: \x00\n", r"line 2: the character '\\x00' is not allowed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_yaml_is_refused_with_its_file_and_line(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lora_rnak: 4", "recipe.yaml: there is no key 'lora_rnak'. Did you mean 'lora_r'"),
        ("lora_r: three", "lora_r: invalid int value: 'three'"),
        ("lora_r: [1, 2]", "lora_r is .*: expected one value"),
        ("caption_column: [[a]]", "caption_column is .*: expected a list of plain values"),
        ("learning_rate: {value: 1}", "learning_rate: invalid float value"),
        ("hub_token: hf_secret", "hub_token is given"),
    ],
)
def test_keys_and_types_are_checked_in_yaml_too(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"dataset_name: shapes\nmodel_name_or_path: tiny\n{line}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        parse(path)


@pytest.mark.parametrize(("value", "is_off"), [("null", True), ("false", True), ("0", True), ("4", False)])
def test_a_key_of_another_task_may_be_off_in_both_formats(value: str, is_off: bool, tmp_path: Path) -> None:
    for name, content in (
        ("r.json", f'{{"dataset_name": "shapes", "kl_coef": {value}}}'),
        ("r.yaml", f"kl_coef: {value}"),
    ):
        (tmp_path / name).write_text(content)
        if is_off:
            parse(tmp_path / name)
        else:
            with pytest.raises(RecipeError, match="kl_coef is given, but task is 'captioning'"):
                parse(tmp_path / name)


@pytest.mark.parametrize("name", ["shapes_tiny", "shapes_tiny.json", "recipes/shapes_tiny.json", "recipes/shapes_tiny"])
def test_a_packaged_recipe_is_found_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(find_recipe(name))["output_dir"] == "outputs/shapes_tiny"
    (tmp_path / "shapes_tiny.json").write_text('{"seed": 7}')
    assert load_recipe(find_recipe("shapes_tiny.json")) == {"seed": 7}
    with pytest.raises(RecipeError, match=r"no recipe 'recipe\.schema\.json'"):
        find_recipe("recipe.schema.json")


def test_a_run_from_yaml_ends_with_the_same_bytes(tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path / "data", 3)
    lines = [json.dumps({"file_name": path.name, "text": f"a dot {path.stem}"}) for path in paths]
    (tmp_path / "data/metadata.jsonl").write_text("\n".join(lines) + "\n")
    keys = {
        "model_name_or_path": "tiny",
        "dataset_name": str(tmp_path / "data"),
        "learning_rate": 0.0001,
        "max_steps": 1,
        "generation_num_beams": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    for name, content in (
        ("json", json.dumps(keys)),
        ("yaml", yaml.safe_dump(keys, sort_keys=False).replace("0.0001", "1e-4")),
    ):
        (tmp_path / f"recipe.{name}").write_text(content)
        main([str(tmp_path / f"recipe.{name}"), "--output_dir", str(tmp_path / name / "run")])
    for file in ("model.safetensors", "recipe.json"):
        assert (tmp_path / "json/run" / file).read_bytes() == (tmp_path / "yaml/run" / file).read_bytes()
