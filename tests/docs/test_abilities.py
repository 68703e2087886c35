"""Each cell of the table of abilities names a test that is there, or a reason."""

from __future__ import annotations

import re

from commands import CHECKOUT

PAGE = CHECKOUT / "docs" / "abilities.md"
YES = re.compile(r"\[yes\]\(\.\./(tests/[\w/]+\.py)#(test_\w+)\)")


def test_every_cell_is_a_test_or_a_reason() -> None:
    rows = [
        line.strip("| \n").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "| [yes]" in line
    ]
    assert len(rows) == 20
    for ability, *cells in rows:
        assert len(cells) == 5, ability
        for cell in cells:
            if found := YES.fullmatch(cell):
                code = (CHECKOUT / found[1]).read_text(encoding="utf-8")
                assert f"\ndef {found[2]}(" in code, cell
            else:
                assert re.fullmatch(r"no: .{15,}", cell), cell
                assert "no test" not in cell, cell
