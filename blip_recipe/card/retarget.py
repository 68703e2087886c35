"""Name another repository in the card and the recipe of an output directory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from blip_recipe.card.facts import PLACEHOLDER
from blip_recipe.data.storage import read_json, write_atomically, write_json

if TYPE_CHECKING:
    from pathlib import Path

CODE = re.compile(r"^```.*?^```|`[^`\n]+ [^`\n]+`", flags=re.DOTALL | re.MULTILINE)
"""Code blocks, and code of several words in a line: where a card says how its repository is used."""


def retarget(folder: Path, repo_id: str) -> None:
    """Name the repository that an output directory is pushed to in its `recipe.json` and card.

    The recipe, which says what the card spoke of, is replaced last, and neither is ever half written: a push that is
    killed can be repeated.
    """
    recipe = read_json(folder / "recipe.json")
    old = recipe.get("hub_model_id") or PLACEHOLDER
    if old == repo_id:
        return
    readme = folder / "README.md"
    if readme.exists():
        write_atomically(readme, retarget_card(readme.read_bytes().decode(), old, repo_id).encode())
    if recipe:
        write_json(folder / "recipe.json", recipe | {"hub_model_id": repo_id})


def retarget_card(card: str, old: str, new: str) -> str:
    """A card with one repository's name for another's: in its code, and in the `name` of its model-index.

    Prose and other metadata stay: the base model or the data set may have the very name that the model had.
    """
    metadata, text = _split_card(card)
    metadata = re.sub(rf"^- name: (['\"]?){re.escape(old)}\1$", rf"- name: \g<1>{new}\1", metadata, flags=re.MULTILINE)
    # A longer name, or a longer namespace, is another repository.
    name = re.compile(rf"(?<![\w.-]){re.escape(old)}(?![\w-]|\.\w)")
    return metadata + CODE.sub(lambda code: name.sub(new, code[0]), text)


def _split_card(card: str) -> tuple[str, str]:
    """The block of metadata at the top of a card, with its fences, and the rest."""
    block = re.match(r"---\r?\n.*?\r?\n---(?=\r?\n|$)", card, flags=re.DOTALL)
    return (card[: block.end()], card[block.end() :]) if block else ("", card)
