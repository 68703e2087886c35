"""Links of README and docs lead to files and headings that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from doc_pages import PAGES, name_of
from forked import CHECKOUT

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)

ROWS = 20
"""Abilities in the table of docs/abilities.md."""


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them alike; of a Python file, its functions."""
    if page.suffix == ".py":
        return {each.name for each in ast.parse(page.read_text()).body if isinstance(each, ast.FunctionDef)}
    headings = HEADING.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if "://" in link or anchor.startswith("blip_recipe."):  # mkdocstrings makes the anchors of the API
            continue
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


def test_no_page_is_long() -> None:
    lengths = {name_of(page): len(page.read_text(encoding="utf-8").splitlines()) for page in PAGES}
    assert lengths["README.md"] <= 150
    assert not {name: length for name, length in lengths.items() if length > 200}


def test_each_ability_of_a_task_is_proved_or_explained() -> None:
    page = (CHECKOUT / "docs" / "abilities.md").read_text(encoding="utf-8")
    table = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    tasks = [cell.strip() for cell in table[0][1:]]
    assert tasks[:4] == ["captioning", "SCST", "VQA", "retrieval"]
    rows = [[cell.strip() for cell in row] for row in table[2 : 2 + ROWS]]
    for name, *cells in rows:
        assert len(cells) == len(tasks), name
        for task, cell in zip(tasks, cells, strict=True):
            # `test_links_lead_somewhere` checks that the test exists.
            is_proved = re.fullmatch(r"\[yes\]\(\.\./tests/[\w/]+\.py#test_\w+\)", cell)
            assert is_proved or re.fullmatch(r"no: .{10,}", cell), f"{name}, {task}: {cell!r}"
