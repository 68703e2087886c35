"""Find the cache folder of the package."""

from __future__ import annotations

import os
from pathlib import Path

from blip_recipe.metrics.errors import CacheFolderError


def cache_folder(*parts: str) -> Path:
    """Create and return a folder in `BLIP_RECIPE_CACHE`, by default `blip_recipe` in the user's cache folder.

    The user's cache folder is `XDG_CACHE_HOME`, on Windows `LOCALAPPDATA`, else `~/.cache`.

    Raises:
        CacheFolderError: The folder cannot be created.
    """
    usual = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    folder = Path(os.environ.get("BLIP_RECIPE_CACHE") or Path(usual) / "blip_recipe", *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheFolderError(
            f"the cache folder {folder} cannot be created ({error}): set BLIP_RECIPE_CACHE to a writable folder."
        ) from error
    return folder
