"""What every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import browser, page  # noqa: F401 - fixtures
from hub_server import WRITE_TOKEN, HubServer

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The loopback Hub speaks plain HTTP; read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

CHECKOUT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no process is alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(scope="session")
def warm_java() -> Iterator[str | None]:
    """A `java` whose METEOR has read its tables already."""
    import warm_java

    with warm_java.warm_java() as java:
        yield java


@pytest.fixture(scope="module", autouse=True)
def java(request: pytest.FixtureRequest, warm_java: str | None) -> Iterator[None]:
    """Let all commands use `warm_java`, but for the tests of METEOR and SPICE themselves."""
    with pytest.MonkeyPatch.context() as patch:
        if warm_java and request.path.parent.name != "metrics":
            patch.setenv("BLIP_RECIPE_JAVA", warm_java)
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
