"""The flat JSON file of a recipe: found, read, and turned into the words of a command line.

Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
import json
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, NoReturn

from transformers.hf_argparser import HfArgumentParser

from blip_recipe.data.resources import resource_folder
from blip_recipe.errors import RecipeError


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` whose complaints are `RecipeError`s, without a usage text of two hundred lines."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message.replace("argument --", "", 1))


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults beside the keys, and the epilogue as it is."""


def find_recipe(name: str) -> Path:
    """The file `name`, or the one of that name that travels with the package.

    Raises:
        RecipeError: There is none.
    """
    path, packaged = Path(name), resource_folder("recipes") / Path(name).name
    if path.is_file():
        return path
    if path.parent in (Path(), Path("recipes")) and packaged.is_file():
        return packaged
    known = sorted(path.name for path in resource_folder("recipes").glob("*.json"))
    raise RecipeError(f"There is no recipe {name!r}. The package brings: {', '.join(known)}.")


def load_json(path: Path) -> dict[str, Any]:
    """The content of a recipe.

    Raises:
        RecipeError: It is no UTF-8, no JSON or no object of keys and values, or has a key twice.
    """
    try:
        content = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_key_twice, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no UTF-8 text ({error}): save it as UTF-8.") from error
    except RecursionError as error:
        raise RecipeError(f"{path} cannot be read as JSON: it is nested too deeply for a flat recipe.") from error
    except (ValueError, OSError) as error:
        raise RecipeError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds a JSON {type(content).__name__}: expected one flat object of keys and values.")
    return content


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON knows")


def to_words(recipe: dict[str, Any], names: list[str], lists: set[str], file: str) -> list[str]:
    """The recipe as command-line words, so that JSON and command line are read, typed and refused in one way.

    Args:
        recipe: Its content.
        names: The keys that there are.
        lists: Those that take several values.
        file: What it is called in messages.

    Raises:
        RecipeError: It has another key, or several values for one.
    """
    words: list[str] = []
    for key, value in recipe.items():
        if key not in names:
            raise unknown_key(key, names, file)
        if isinstance(value, list):
            if key not in lists or any(isinstance(each, (dict, list)) or each is None for each in value):
                expected = "a list of plain values" if key in lists else "one value"
                raise RecipeError(f"{file}: {key} is {json.dumps(value):.60}: expected {expected}.")
            words += [f"--{key}", *map(_to_word, value)]
        elif value is not None:
            words.append(f"--{key}={_to_word(value)}")
    return words


def _to_word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def unknown_key(key: str, names: list[str], where: str) -> RecipeError:
    """The error that names the key which is nearest to `key` among `names`."""
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else " `--help` lists the keys."
    return RecipeError(f"{where}: there is no key {key!r}.{hint}")
