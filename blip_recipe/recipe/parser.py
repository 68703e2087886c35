"""Turn a recipe into command-line arguments, so that file and command line are typed and checked by one parser."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from transformers.hf_argparser import HfArgumentParser

from blip_recipe.errors import RecipeError
from blip_recipe.recipe.other_names import OTHER_NAMES

if TYPE_CHECKING:
    from argparse import Action
    from collections.abc import Iterable, Sequence

OFF = ("", "none", "null", "false", "xe", "0", "0.0")
"""Values that turn a key off, so that it may be given where it has no effect."""

UNSET = ("null", "none")
"""Words that unset a key, in any case; a recipe has `null`."""

OWN_UNSET = {"report_to": "none"}
"""Keys that have a value of their own for nothing."""

NEVER_UNSET = ("output_dir",)
"""Keys that transformers has without a value, but this package has not."""


def is_off(value: Any) -> bool:
    """Whether a value of a file or the command line turns its key off."""
    return str(value).lower() in OFF


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` that unsets keys, and raises `RecipeError` instead of printing a usage text of 200 lines.

    Attributes:
        unset_values: The values of the keys that can be unset.
    """

    def __init__(self, groups: Any, **options: Any) -> None:
        super().__init__(groups, **options)
        self.unset_values = unset_values(groups)

    def error(self, message: str) -> NoReturn:
        # argparse names every spelling of an option.
        raise RecipeError(re.sub(r"^argument --(\w+)[^:]*", r"\1", message))

    def _get_values(self, action: Action, words: list[str]) -> Any:
        """Like argparse's, but `null` and `none` unset a key, and truth values among choices are read in any case."""
        if any(isinstance(choice, bool) for choice in action.choices or ()):
            words = [word.capitalize() if word.lower() in ("true", "false") else word for word in words]
        if len(words) != 1 or words[0].lower() not in UNSET or words[0] in (action.choices or ()):
            return super()._get_values(action, words)  # type: ignore[misc]
        if action.dest not in self.unset_values:
            raise RecipeError(
                f"{action.dest} is {words[0]}, but it cannot be unset. Give it another value, or leave it out for its "
                "default."
            )
        return self.unset_values[action.dest]


def unset_values(groups: Iterable[Any]) -> dict[str, Any]:
    """The values of the keys that can be unset: None if the type has it, else the default if that is off."""
    found: dict[str, Any] = {}
    for group in groups:
        types = get_type_hints(group)
        for each in dataclasses.fields(group):
            if type(None) in get_args(types[each.name]) or each.default is None:
                found[each.name] = OWN_UNSET.get(each.name)
            elif each.default is False or each.default == "":
                found[each.name] = each.default
    return {key: value for key, value in found.items() if key not in NEVER_UNSET}


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
        recipe: Its keys and values; `None` unsets a key.
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
        else:
            arguments.append(f"--{key}={_to_argument(value)}")
    return arguments


def _to_argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def unknown_key(key: str, names: Sequence[str], where: str) -> RecipeError:
    """The error about a key that does not exist; it names the keys among `names` that are probably meant."""
    usual = OTHER_NAMES.get(key.lower().replace("-", "_"), [])
    meant = [name for name in usual if name in names] or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, meant))}?" if meant else " `--help` lists the keys."
    return RecipeError(f"{where}: there is no key {key!r}.{hint}")
