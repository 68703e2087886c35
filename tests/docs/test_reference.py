"""The reference of recipe keys is that of the classes of arguments."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

from commands import CHECKOUT


def test_the_reference_is_current() -> None:
    pages = runpy.run_path(str(CHECKOUT / "docs" / "make_reference.py"))["reference_pages"]()
    assert pages
    for name, text in pages.items():
        written = (CHECKOUT / "docs" / "recipes" / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is old: run `python -m docs.make_reference`"


def test_the_reference_has_every_key_of_every_recipe() -> None:
    pages = (CHECKOUT / "docs" / "recipes").glob("*.md")
    listed = {key for page in pages for key in re.findall(r"^\| `(\w+)`", page.read_text(encoding="utf-8"), re.M)}
    for path in recipes():
        assert not json.loads(path.read_text(encoding="utf-8")).keys() - listed, path.name


def test_the_table_of_recipes_has_every_recipe() -> None:
    table = (CHECKOUT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+\.json)`", table, re.M)) == sorted(path.name for path in recipes())


def recipes() -> list[Path]:
    """The packaged recipes."""
    return [path for path in (CHECKOUT / "recipes").glob("*.json") if not path.name.endswith(".schema.json")]
