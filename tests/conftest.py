"""What every test may use."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import order
import pytest
from browser import browser, page  # noqa: F401 - fixtures
from hub_server import WRITE_TOKEN, HubServer
from warm_java import warm_java

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The loopback Hub speaks plain HTTP; read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

CHECKOUT = Path(__file__).parent.parent


WARM_JAVA = "TESTS_WARM_JAVA"


def pytest_configure(config: pytest.Config) -> None:
    """Make ready what all processes of the tests share."""
    if not hasattr(config, "workerinput") and not config.option.collectonly and sys.platform == "linux":
        shared = contextlib.ExitStack()
        os.environ[WARM_JAVA] = shared.enter_context(warm_java())
        config.add_cleanup(shared.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests."""
    order.sort(items)


def pytest_collection_finish() -> None:
    """Let no search for garbage look through all that is imported by now."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries complain of what is left at the end


@pytest.fixture(scope="module", autouse=True)
def java(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let all commands use `warm_java`, but for the tests of METEOR and SPICE themselves."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get(WARM_JAVA) and request.path.parent.name != "metrics":
            patch.setenv("BLIP_RECIPE_JAVA", os.environ[WARM_JAVA])
        yield


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub of this test's own."""
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    """A client of `hub` that may write."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=WRITE_TOKEN)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data (real photographs, odd files, scores and losses of the original code)."""
    folder = Path(os.environ.get("BLIP_RECIPE_SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no reference data: set BLIP_RECIPE_SHARED to its folder")
    return folder
