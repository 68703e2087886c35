"""Where what is worth keeping between runs lies."""

from __future__ import annotations

import os
from pathlib import Path

from blip_recipe.metrics.errors import CacheFolderError


def cache_folder(*parts: str) -> Path:
    """A folder in the user's cache, made if it is missing: `BLIP_RECIPE_CACHE`, else `blip_recipe` in the usual place.

    The usual place is `XDG_CACHE_HOME`, on Windows `LOCALAPPDATA`, else `~/.cache`.

    Raises:
        CacheFolderError: It cannot be made.
    """
    usual = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    folder = Path(os.environ.get("BLIP_RECIPE_CACHE") or Path(usual) / "blip_recipe", *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheFolderError(
            f"the cache folder {folder} cannot be made ({error}): set BLIP_RECIPE_CACHE to one that can."
        ) from error
    return folder
