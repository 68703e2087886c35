"""List the recipes that come with the package, or copy one."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from pathlib import Path
from typing import NamedTuple

from blip_recipe.data.resources import resource_folder
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.file import find_packaged_recipe, packaged_recipes

PROG = "blip-recipe recipes"

TABLE_ROW = re.compile(r"^\|\W*(?P<name>\w+)\.json[^|]*\|(?P<purpose>[^|]*)\|(?P<needs>[^|]*)\|")
MARKDOWN = re.compile(r"\[([^\]]*)\]\([^)]*\)|[`*]")


class PackagedRecipe(NamedTuple):
    """A packaged recipe: its name, what it is for, and what it needs."""

    name: str
    purpose: str
    needs: str


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """List the packaged recipes, or copy one."""
    arguments = build_parser(prog).parse_args(argv)
    if arguments.name is None:
        print("\n".join(map(format_recipe, list_recipes())))
    else:
        print(copy_recipe(arguments.name, arguments.destination, overwrite=arguments.overwrite))


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog=prog, description="List the packaged recipes, or copy one to edit it.")
    name = parser.add_argument("name", metavar="NAME", nargs="?", help="recipe to copy; default: list all of them")
    name.completer = lambda **_: [path.stem for path in packaged_recipes()]  # type: ignore[attr-defined]
    parser.add_argument(
        "destination", metavar="DEST", type=Path, nargs="?", default=Path(), help="file or folder; default: this folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser


def list_recipes() -> list[PackagedRecipe]:
    """The packaged recipes as the table of `recipes/README.md` describes them, in its order."""
    lines = (resource_folder("recipes") / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [match.groupdict() for line in lines if (match := TABLE_ROW.match(line))]
    return [PackagedRecipe(**{key: MARKDOWN.sub(r"\1", text).strip() for key, text in row.items()}) for row in rows]


def format_recipe(recipe: PackagedRecipe) -> str:
    """A recipe as lines of text."""
    lines = (recipe.purpose, f"needs: {recipe.needs}")
    indented = [textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="    ") for line in lines]
    return "\n".join([recipe.name, *indented])


def copy_recipe(name: str, destination: Path, *, overwrite: bool = False) -> Path:
    """Copy a packaged recipe to a file or into a folder, and return the new file.

    Raises:
        RecipeError: There is no such recipe, the file exists and may not be overwritten, or it cannot be written.
    """
    recipe = find_packaged_recipe(name)
    is_folder = destination.is_dir() or not destination.suffix
    target = destination / recipe.name if is_folder else destination
    if target.exists() and not overwrite:
        raise RecipeError(f"{target} exists: name another file, or add --overwrite to replace it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recipe, target)
    except OSError as error:
        raise RecipeError(f"{target} cannot be written: {error}. Name another file or folder.") from error
    return target
