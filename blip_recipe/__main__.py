# PYTHON_ARGCOMPLETE_OK
"""Run a command of the package: `blip-recipe COMMAND ...`."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import blip_recipe
from blip_recipe.errors import RecipeError, run_command


class Command(NamedTuple):
    """A command: its module, which has `main(argv, prog)`, one line about it, and whether it reads a recipe."""

    module: str
    help: str
    takes_recipe: bool = False


COMMANDS = {
    "finetune": Command("blip_recipe.finetune", "train from a recipe, score, write a card, push to the Hub", True),
    "evaluate": Command("blip_recipe.evaluate", "score a model on a split, or a file of captions", True),
    "compare": Command("blip_recipe.compare", "compare the scores of two files of predictions"),
    "caption": Command("blip_recipe.caption", "caption files, folders and URLs, or a data set"),
    "answer": Command("blip_recipe.answer", "answer questions about a picture"),
    "match": Command("blip_recipe.match", "score how well texts match pictures, or write embeddings"),
    "explain": Command("blip_recipe.explain", "draw which parts of a picture a caption, answer or match rests on"),
    "capfilt": Command("blip_recipe.capfilt.__main__", "clean a web data set with a captioner and a filter", True),
    "export": Command("blip_recipe.export", "export a model to run without torch, or in a browser"),
    "convert": Command("blip_recipe.convert", "convert weights of the original code or of LAVIS"),
    "merge": Command("blip_recipe.merge", "merge a LoRA adapter into its base model"),
    "push": Command("blip_recipe.push", "push a finished output directory to the Hub"),
    "demo": Command("blip_recipe.demo", "open a page to try a model in the browser"),
    "space": Command("blip_recipe.space", "push a Space, a page on the Hub to try a model"),
    "recipes": Command("blip_recipe.recipe.packaged", "list the packaged recipes, or copy one"),
    "schema": Command("blip_recipe.schema", "print the JSON Schema of recipes, for editors"),
    "env": Command("blip_recipe.env", "print what a bug report needs"),
}

EPILOG = """\

`COMMAND --help` shows the arguments of a command. For shell completion, install argcomplete and run
  eval "$(register-python-argcomplete blip-recipe)"
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command that the first argument names.

    Raises:
        RecipeError: There is no such command.
    """
    arguments = sys.argv[1:] if argv is None else argv
    prog = "python -m blip_recipe" if Path(sys.argv[0]).name == "__main__.py" else "blip-recipe"
    parser = build_parser(prog)
    name = parser.parse_args(arguments[:1]).command
    if name is None:
        parser.print_help()
        raise SystemExit(2)
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
        raise RecipeError(f"There is no command {name!r}. {hint}`{prog} --help` lists the commands.")
    import_module(COMMANDS[name].module).main(arguments[1:], prog=f"{prog} {name}")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of what stands before a command's own arguments."""
    lines = [f"  {name:<10}{command.help}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} COMMAND ...",
        description="\n".join(["Fine-tune, evaluate and use BLIP.\n\ncommands:", *lines]),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"blip_recipe {blip_recipe.__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def complete() -> None:
    """Answer the shell, which asks argcomplete to complete a command line."""
    import argcomplete

    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        if command.takes_recipe:
            add_recipe_arguments(commands.add_parser(name), name)
        else:
            commands.add_parser(name, parents=[import_module(command.module).build_parser()], add_help=False)
    argcomplete.autocomplete(parser)


def add_recipe_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the recipe and its keys, which the packaged schema lists: the argument classes of Trainer import torch."""
    from argcomplete import FilesCompleter

    from blip_recipe.data.resources import resource_folder
    from blip_recipe.recipe.arguments import EvaluateOptions, names_of
    from blip_recipe.recipe.file import SCHEMA, load_recipe, packaged_recipes

    files = FilesCompleter(("json", "yaml", "yml"))

    def complete_recipe(**state: Any) -> list[str]:
        fitting = [
            recipe.stem
            for recipe in packaged_recipes()
            if ("captioner_name_or_path" in load_recipe(recipe)) == (command == "capfilt")
        ]
        return [*fitting, *files(**state)]

    parser.add_argument("recipe", nargs="?").completer = complete_recipe  # type: ignore[attr-defined]
    definitions = json.loads((resource_folder("recipes") / SCHEMA).read_text(encoding="utf-8"))["definitions"]
    shared = definitions.pop("shared")
    properties: dict[str, Any] = {}
    for name, definition in definitions.items():
        if (name == "capfilt") == (command == "capfilt"):
            properties = definition["properties"] | properties
    del properties["$schema"]
    if command == "evaluate":
        properties |= {key: {} for key in names_of(EvaluateOptions)}
    for key, value in properties.items():
        add_key(parser, key, shared[key] if "$ref" in value else value)


def add_key(parser: argparse.ArgumentParser, key: str, value: dict[str, Any]) -> None:
    """Add a key of a recipe with the choices that its property in the schema names."""
    choices = value.get("items", value).get("enum", ())
    if "boolean" in value.get("type", ()):
        choices = ("true", "false")
    parser.add_argument(
        f"--{key}",
        nargs="*" if "items" in value else None,
        choices=[choice for choice in choices if choice is not None] or None,
        help=value.get("description", "").replace("%", "%%"),
    )


def run() -> None:
    """The entry point `blip-recipe`."""
    if "_ARGCOMPLETE" in os.environ and find_spec("argcomplete"):
        complete()
    run_command(main)


if __name__ == "__main__":
    run()
