"""Print the JSON Schema of recipes, so that editors complete and check them.

blip-recipe schema > recipe.schema.json

The packaged schema is printed as it is, if it was made with the installed transformers. After a change of the keys:

blip-recipe schema --remake > recipes/recipe.schema.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from enum import Enum
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_type_hints

from blip_recipe.data.resources import resource_folder
from blip_recipe.errors import run_command
from blip_recipe.recipe.arguments import TASKS, FinetuneOptions, TaskArguments
from blip_recipe.recipe.file import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

PROG = "python -m blip_recipe.schema"

OFF = [None, False, "", "false", "False", "xe", 0]
"""Values with which a key of another task may stand in a recipe."""

PATH_OR_TRUE = ("image_cache", "resume_from_checkpoint", "fsdp", "add_tokens")
"""Text keys that also take `true`."""

LINE = 120
"""Characters of a line of the schema."""

Properties = dict[str, dict[str, Any]]


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the packaged schema, or a new one for another version of transformers."""
    parser = build_parser(prog)
    remade = parser.parse_args(argv).remake
    text = "" if remade else (resource_folder("recipes") / SCHEMA).read_text(encoding="utf-8")
    print(text.rstrip("\n") if describe_origin() in text else format_json(recipe_schema()))


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description='Print the JSON Schema of recipes; name its file in the key "$schema" of a recipe.'
    )
    parser.add_argument("--remake", action="store_true", help="make the schema from the code, which takes seconds")
    return parser


def describe_origin() -> str:
    """The comment that names the transformers whose keys a schema has."""
    return f"Made by `blip-recipe schema` with transformers {version('transformers')}."


def format_json(value: Any, indent: str = "") -> str:
    """JSON in which an object that fits on a line stands on one."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or len(indent + line) <= LINE:
        return line
    inner = f"{indent} "
    items = [f"{inner}{json.dumps(key)}: {format_json(each, inner)}" for key, each in value.items()]
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"


def recipe_schema() -> dict[str, Any]:
    """The schema of the recipes of `finetune` and `capfilt`.

    There is one definition for each task, one for the second stage of captioning, and one for `capfilt`. A chain of
    if, then and else chooses among them: by the keys of `capfilt`'s two models, by `task`, by `stage`. A key of another
    task may stand in a recipe if it is off, as in the parser.

    The schema checks keys, types and choices. Ranges and contradictions are found when a recipe is read. The parser
    also reads numbers and truth values from text, which the schema refuses. Keys that hold tokens are left out.

    The keys of `Seq2SeqTrainingArguments` are those of the installed transformers, which `$comment` names.
    """
    finetune = finetune_properties()
    capfilt = capfilt_properties()
    every_key = {key for properties in finetune.values() for key in properties}
    shared = shared_properties(finetune.values())
    definitions = {name: definition(each, shared, every_key - set(each)) for name, each in finetune.items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": describe_origin(),
        "title": "Recipe of blip_recipe",
        "type": "object",
        "if": {"anyOf": [{"required": [key]} for key in capfilt if key.startswith(("captioner_", "filter_"))]},
        "then": reference("capfilt"),
        "else": choose_among(
            ("task", "vqa"), ("task", "retrieval"), ("task", "pretrain"), ("stage", "scst"), otherwise="captioning"
        ),
        "definitions": {**definitions, "capfilt": definition(capfilt, {}, set()), "shared": shared},
    }


def reference(name: str) -> dict[str, Any]:
    """A reference to a definition."""
    return {"$ref": f"#/definitions/{name}"}


def choose(key: str, value: str, otherwise: dict[str, Any]) -> dict[str, Any]:
    """Choose the definition named `value` for recipes whose `key` has that value."""
    condition = {"required": [key], "properties": {key: {"const": value}}}
    return {"if": condition, "then": reference(value), "else": otherwise}


def choose_among(*choices: tuple[str, str], otherwise: str) -> dict[str, Any]:
    """Choose the definition of the first key and value that a recipe has."""
    chosen = reference(otherwise)
    for key, value in reversed(choices):
        chosen = choose(key, value, chosen)
    return chosen


def definition(properties: Properties, shared: Properties, other_keys: set[str]) -> dict[str, Any]:
    """The definition of recipes with `properties`, where `other_keys` may stand only if they are off."""
    own = {key: reference(f"shared/{key}") if key in shared else each for key, each in properties.items()}
    pattern = {f"^({'|'.join(sorted(other_keys))})$": {"enum": OFF}} if other_keys else {}
    return {
        "type": "object",
        "properties": {"$schema": {"type": "string", "description": "The file of this schema."}, **own},
        "patternProperties": pattern,
        "additionalProperties": False,
    }


def shared_properties(definitions: Iterable[Properties]) -> Properties:
    """The properties that are the same in all `definitions` that have them, which are several."""
    found: dict[str, list[dict[str, Any]]] = {}
    for properties in definitions:
        for key, each in properties.items():
            found.setdefault(key, []).append(each)
    return {key: each[0] for key, each in found.items() if len(each) > 1 and all(one == each[0] for one in each)}


def finetune_properties() -> dict[str, Properties]:
    """The properties of a recipe of `finetune`, by task, and for the second stage of captioning."""
    from blip_recipe.recipe.training_arguments import TRAINING_ARGUMENTS

    found: dict[str, Properties] = {}
    for task, keys in TASKS.items():
        for stage in keys.stages:
            training = TRAINING_ARGUMENTS[task][stage]
            properties = properties_of([TaskArguments, keys.model, keys.data, training, FinetuneOptions])
            properties["stage"]["enum"] = list(keys.stages)
            for key in ("metrics", "eval_metrics"):
                properties[key]["items"] = {"enum": list(training.known_metrics)}
            found[task if stage == "xe" else stage] = properties
    return found


def capfilt_properties() -> Properties:
    """The properties of a recipe of `capfilt`."""
    from blip_recipe.capfilt.arguments import CapFiltArguments

    return properties_of([CapFiltArguments])


def properties_of(groups: list[Any]) -> Properties:
    """The properties of classes of arguments, typed as their parser reads them."""
    from transformers.hf_argparser import HfArgumentParser

    from blip_recipe.recipe.parser import unset_values

    fields = {each.name: each for group in groups for each in dataclasses.fields(group) if each.init}
    types = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    unset = unset_values(groups)
    actions = {action.option_strings[0][2:]: action for action in HfArgumentParser(groups, add_help=False)._actions}
    return {
        key: to_property(actions[key], kinds_of(actions[key], types[key]), default_of(each), can_be_unset=key in unset)
        for key, each in fields.items()
        if not key.endswith("_token")
    }


def to_property(action: argparse.Action, kinds: list[str], default: Any, *, can_be_unset: bool) -> dict[str, Any]:
    """The property of one key; `null` unsets it."""
    found: dict[str, Any] = {"description": " ".join((action.help or "").split())}
    null = ["null"] if can_be_unset else []
    if action.choices:
        found["enum"] = [*action.choices, *([None] if can_be_unset else [])]
    elif action.nargs in ("+", "*"):
        found |= {"type": ["array", *kinds, *null], "items": {"type": kinds[0]}, "minItems": 1}
    else:
        found["type"] = [*kinds, *null]
    if isinstance(default, KINDS[kinds[0]]) and default not in ("", []):
        found["default"] = default
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a key; `None` where it depends on the machine."""
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return made if isinstance(made, list) else None
    return field.default.value if isinstance(field.default, Enum) else field.default


KINDS: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str, list),
    "object": (dict,),
}
"""The types of JSON that keys have, and those of their defaults."""


def kinds_of(action: argparse.Action, hint: Any) -> list[str]:
    """The types of JSON that the parser reads for a key."""
    from transformers.hf_argparser import string_to_bool

    names: dict[Any, str] = {string_to_bool: "boolean", int: "integer", float: "number"}
    kinds = [names.get(action.type, "string")]
    if "dict" in str(hint):
        kinds.append("object")
    if action.dest in PATH_OR_TRUE:
        kinds.append("boolean")
    return kinds


if __name__ == "__main__":
    run_command(main)
