"""The pages that tests of README and docs read."""

from __future__ import annotations

from pathlib import Path

from forked import CHECKOUT

PAGES = sorted(
    [
        *(CHECKOUT / name for name in ("README.md", "SECURITY.md", "benchmarks/README.md", "recipes/README.md")),
        *(CHECKOUT / "docs").rglob("*.md"),
    ]
)


def name_of(page: Path) -> str:
    """A page's path in the checkout."""
    return page.relative_to(CHECKOUT).as_posix()
