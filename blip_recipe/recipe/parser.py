"""Turn a recipe into command-line arguments, so that file and command line are typed and checked by one parser."""

from __future__ import annotations

import difflib
import json
import re
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from typing import TYPE_CHECKING, Any, NoReturn

from transformers.hf_argparser import HfArgumentParser

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` that raises `RecipeError` instead of printing a usage text of two hundred lines."""

    def error(self, message: str) -> NoReturn:
        # argparse names every spelling of an option.
        raise RecipeError(re.sub(r"^argument --(\w+)[^:]*", r"\1", message))


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Show defaults beside the keys, and keep the line breaks of the epilogue."""


def list_keys(parser: HfArgumentParser) -> set[str]:
    """The keys of `parser` that take several values."""
    return {action.dest for action in parser._actions if action.nargs in ("+", "*")}


def option_names(parser: HfArgumentParser) -> list[str]:
    """Every spelling that `parser` knows, without dashes in front."""
    return [option.lstrip("-") for action in parser._actions for option in action.option_strings]


def to_arguments(recipe: dict[str, Any], names: Sequence[str], lists: set[str], file: str) -> list[str]:
    """Turn a recipe into command-line arguments.

    Args:
        recipe: Its keys and values; a key whose value is `None` keeps its default.
        names: The keys that exist.
        lists: Those that take several values.
        file: Name of the file in messages.

    Raises:
        RecipeError: A key does not exist, or takes one plain value and has several or a nested one.
    """
    arguments: list[str] = []
    for key, value in recipe.items():
        if key not in names:
            raise unknown_key(key, names, file)
        if isinstance(value, list):
            if key not in lists or any(isinstance(each, (dict, list)) or each is None for each in value):
                expected = "a list of plain values" if key in lists else "one value"
                raise RecipeError(f"{file}: {key} is {json.dumps(value):.60}: expected {expected}.")
            arguments += [f"--{key}", *map(_to_argument, value)]
        elif value is not None:
            arguments.append(f"--{key}={_to_argument(value)}")
    return arguments


def _to_argument(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def unknown_key(key: str, names: Sequence[str], where: str) -> RecipeError:
    """The error about a key that does not exist; it names the nearest one of `names`."""
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else " `--help` lists the keys."
    return RecipeError(f"{where}: there is no key {key!r}.{hint}")
