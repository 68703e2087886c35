"""The JSON Schema of recipes: current, right about every recipe, and as strict as the parser about keys and types."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from commands import CHECKOUT
from jsonschema import Draft7Validator
from test_wrong_inputs import CASES

from blip_recipe.data.resources import resource_folder
from blip_recipe.recipe.file import SCHEMA, packaged_recipes
from blip_recipe.schema import main, recipe_schema

RECIPES = [*packaged_recipes(), *sorted(CHECKOUT.glob("model_cards/examples/*/recipe.json"))]

WRONG_KEY_OR_TYPE = {
    "unknown key",
    "a nested recipe",
    "text for an integer",
    "a fraction for an integer",
    "an object for a number",
    "a list for a number",
    "an object in a list",
    "a nested list",
    "text for a truth value",
    "no such choice",
    "no such optimiser",
    "no such metric",
    "no metrics",
    "a token",
    "a token for Trainer",
}
"""The cases of `tests/test_wrong_inputs.py` whose fault is a key or the type of its value."""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads((resource_folder("recipes") / SCHEMA).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft7Validator:
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def test_the_packaged_schema_is_that_of_the_argument_classes(schema: dict[str, Any]) -> None:
    # Trainer's keys differ from version to version of transformers; this package's do not.
    theirs = {field.name for field in dataclasses.fields(transformers.Seq2SeqTrainingArguments)}
    packaged, today = (
        {
            (name, key): value
            for name, definition in each["definitions"].items()
            for key, value in definition.get("properties", definition).items()
            if key not in theirs
        }
        for each in (schema, recipe_schema())
    )
    assert packaged == today, f"run: python -m blip_recipe.schema --remake > recipes/{SCHEMA}"
    if transformers.__version__ not in schema["$comment"]:
        pytest.skip(f"{schema['$comment']} Installed is {transformers.__version__}, whose keys may differ.")
    assert schema == recipe_schema(), f"run: python -m blip_recipe.schema --remake > recipes/{SCHEMA}"


@pytest.mark.parametrize("arguments", [[], ["--remake"]], ids=["packaged", "remade"])
def test_the_command_prints_the_schema(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    assert json.loads(capsys.readouterr().out) == recipe_schema()


def test_the_packaged_schema_is_not_printed_for_another_transformers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("blip_recipe.schema.version", lambda name: f"{name} of tomorrow")
    main([])
    assert "transformers of tomorrow" in json.loads(capsys.readouterr().out)["$comment"]


def test_the_packaged_schema_is_printed_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    run = [sys.executable, "-m", "blip_recipe", "schema"]
    printed = subprocess.run(run, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed == (resource_folder("recipes") / SCHEMA).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_accepted(path: Path, validator: Draft7Validator) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(content)] == []
    assert validator.is_valid({"$schema": SCHEMA, **content})


def test_wrong_keys_and_types_are_refused_and_nothing_else_is(validator: Draft7Validator) -> None:
    right = {"model_name_or_path": "tiny", "dataset_name": "shapes", "max_steps": 1, "report_to": "none"}
    assert validator.is_valid(right)
    recipes = {name: {**right, **case.keys} for name, case in CASES.items() if case.keys is not None}
    assert {name for name, recipe in recipes.items() if not validator.is_valid(recipe)} == WRONG_KEY_OR_TYPE
    assert not validator.is_valid(json.loads(str(CASES["a list"].files["recipe.json"])))


@pytest.mark.parametrize(
    ("recipe", "is_valid"),
    [
        ({"task": "vqa", "group_questions": True}, True),
        ({"task": "retrieval", "queue_size": 0}, True),
        ({"stage": "scst", "kl_coef": 0.1}, True),
        ({"captioner_name_or_path": "x", "filter_threshold": 0.8}, True),
        ({"task": "vqa", "captions_per_image": None, "cache_image_embeds": False}, True),
        ({"image_cache": True, "fsdp": True, "fsdp_config": {"fsdp_version": 2}, "caption_column": "text"}, True),
        ({"learning_rate": 1, "save_total_limit": None, "use_peft": None, "metrics": ["spice"]}, True),
        ({"seed": None}, False),
        ({"task": "chess"}, False),
        ({"task": "vqa", "stage": "scst"}, False),
        ({"task": "vqa", "captions_per_image": 1}, False),
        ({"kl_coef": 0.1}, False),
        ({"task": "vqa", "metrics": ["cider"]}, False),
        ({"captioner_name_or_path": "x", "lora_r": 8}, False),
        ({"captioner_name_or_path": "x", "on_bad_image": "stop"}, False),
        ({"dataset_name": "x", "batch_size": 8}, False),
    ],
)
def test_keys_belong_to_their_task(recipe: dict[str, Any], is_valid: bool, validator: Draft7Validator) -> None:
    assert validator.is_valid(recipe) == is_valid


def test_a_key_has_type_default_choices_and_description(schema: dict[str, Any]) -> None:
    definitions = schema["definitions"]
    assert definitions["captioning"]["properties"]["lora_r"] == {"$ref": "#/definitions/shared/lora_r"}
    assert definitions["shared"]["lora_r"]["type"] == ["integer"]
    assert definitions["shared"]["max_train_samples"]["type"] == ["integer", "null"]
    assert definitions["shared"]["lora_r"]["default"] == 16
    assert definitions["shared"]["augmentation"]["enum"] == ["blip", "none"]
    assert definitions["vqa"]["properties"]["generation_max_length"]["default"] == 10
    every_property = [
        value
        for definition in (*definitions.values(), {"properties": definitions["shared"]})
        for key, value in definition.get("properties", {}).items()
        if "$ref" not in value
    ]
    assert len(every_property) > 200
    assert all(len(value["description"]) > 5 and {"type", "enum"} & value.keys() for value in every_property)
