"""Replace the repository name in the card and the recipe of an output directory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from blip_recipe.card.facts import PLACEHOLDER
from blip_recipe.data.storage import read_json, write_atomically, write_json

if TYPE_CHECKING:
    from pathlib import Path

CODE = re.compile(r"^```.*?^```|`[^`\n]+ [^`\n]+`", flags=re.DOTALL | re.MULTILINE)
"""Code blocks, and inline code of several words: they show how to use the repository."""


def retarget(folder: Path, repo_id: str) -> None:
    """Write the repository that an output directory is pushed to into its `recipe.json` and card.

    Both are written atomically, and the recipe (which has the old name) last, so a killed push can be repeated.
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
    """Replace a repository's name in a card: in its code, and in the `name` of its model-index.

    Prose and other metadata stay unchanged, because the base model or the data set may have the same name.
    """
    metadata, text = split_card(card)
    metadata = re.sub(rf"^- name: (['\"]?){re.escape(old)}\1$", rf"- name: \g<1>{new}\1", metadata, flags=re.MULTILINE)
    # Do not match inside a longer name or namespace.
    name = re.compile(rf"(?<![\w.-]){re.escape(old)}(?![\w-]|\.\w)")
    return metadata + CODE.sub(lambda code: name.sub(new, code[0]), text)


def split_card(card: str) -> tuple[str, str]:
    """Split a card into its metadata block (with fences) and its text."""
    block = re.match(r"---\r?\n.*?\r?\n---(?=\r?\n|$)", card, flags=re.DOTALL)
    return (card[: block.end()], card[block.end() :]) if block else ("", card)
