"""Find a recipe file, in JSON or YAML, and read its keys and values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import yaml

from blip_recipe.data.resources import resource_folder
from blip_recipe.errors import RecipeError

SCHEMA = "recipe.schema.json"
"""The JSON Schema of recipes, beside the packaged recipes."""

YAML_SUFFIXES = (".yaml", ".yml")


def packaged_recipes() -> list[Path]:
    """The recipe files that come with the package, by name."""
    return sorted(path for path in resource_folder("recipes").glob("*.json") if path.name != SCHEMA)


def find_recipe(name: str) -> Path:
    """Find the file `name`, or the packaged recipe of that name.

    Raises:
        RecipeError: There is no such recipe.
    """
    path = Path(name)
    return path if path.is_file() else find_packaged_recipe(name)


def find_packaged_recipe(name: str) -> Path:
    """Find the packaged recipe `name`: `shapes_tiny`, `shapes_tiny.json` or `recipes/shapes_tiny.json`.

    Raises:
        RecipeError: There is no such recipe.
    """
    path, packaged = Path(name), packaged_recipes()
    if path.parent in (Path(), Path("recipes")):
        for recipe in packaged:
            if path.name in (recipe.name, recipe.stem):
                return recipe
    raise RecipeError(
        f"There is no recipe {name!r}. The packaged recipes are: {', '.join(recipe.name for recipe in packaged)}."
    )


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe: YAML if the file's name ends in `.yaml` or `.yml`, else JSON.

    The key `$schema`, which tells an editor where the schema is, is left out.

    Raises:
        RecipeError: The file is not UTF-8, has a syntax error, is not one mapping of keys to values, or has a key
            twice.
    """
    is_yaml = path.suffix.lower() in YAML_SUFFIXES
    kind = "YAML" if is_yaml else "JSON"
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = _read_yaml(text) if is_yaml else _read_json(text)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except RecursionError as error:
        raise RecipeError(f"{path} cannot be read as {kind}: it is nested too deeply for a flat recipe.") from error
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as {kind}: {_describe(error)}.") from error
    if content is None:
        raise RecipeError(f"{path} is empty: expected one flat object of keys and values.")
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} holds a {kind} {type(content).__name__}: expected one flat object of keys and values."
        )
    return {key: value for key, value in content.items() if key != "$schema"}


def _describe(error: Exception) -> str:
    """One line about an error, with the line of the file where it is known."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return place + ", ".join(text for text in (error.context, error.problem) if text)
    return str(error)


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _read_yaml(text: str) -> Any:
    """Read YAML without its surprises.

    A plain value is kept as it is written, and read by the type of its key, as on the command line: `1e-5` is a number
    where the key is one, `no` is a choice of `eval_strategy`, and `007` or `2026-01-01` is a tag. Only `null`, `~` and
    an empty value are special.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: the character {chr(error.character)!r} is not allowed") from error
    if isinstance(root, yaml.MappingNode):
        return _yaml_mapping(root, set(), typed=False)
    return None if root is None else _yaml_value(root, set(), typed=False)


PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
}
"""The tags that PyYAML gives to values that are written without one."""


def _yaml_value(node: yaml.Node, seen: set[int], *, typed: bool) -> Any:
    """The value of a node; `typed` reads plain scalars as JSON does, for values that have no key of their own."""
    if node.tag not in PLAIN_TAGS:
        raise _yaml_error(node, f"the tag {node.tag!r} is not allowed: write a plain value")
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith(":null"):
            return None
        return _json_value(node.value) if typed and node.style is None else node.value
    if id(node) in seen:
        raise _yaml_error(node, "an alias (*name) repeats a list or mapping: write it out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        return _yaml_mapping(node, seen, typed=True)
    return [_yaml_value(each, seen, typed=typed) for each in node.value]


def _yaml_mapping(node: yaml.MappingNode, seen: set[int], *, typed: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _yaml_error(key, "a key must be a name")
        if key.value in content:
            raise _yaml_error(key, f"the key {key.value!r} is given twice")
        content[key.value] = _yaml_value(value, seen, typed=typed)
    return content


def _json_value(text: str) -> Any:
    """The number or truth value that JSON reads in `text`, else `text`."""
    try:
        value = json.loads(text.lower() if text.lower() in ("true", "false") else text, parse_constant=_refuse_constant)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def _yaml_error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
