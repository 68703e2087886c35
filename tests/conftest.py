"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The loopback Hub speaks plain HTTP; read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data (real photographs, odd files, scores and losses of the original code)."""
    folder = Path(os.environ.get("BLIP_RECIPE_SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no reference data: set BLIP_RECIPE_SHARED to its folder")
    return folder
