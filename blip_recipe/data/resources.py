"""Where the files that travel with the package lie: `recipes/` and `model_cards/`."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def resource_folder(name: str) -> Path:
    """The folder `name` of the installed package, or of the checkout that the package is used from."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name
