"""A headless Chromium for tests of pages, with a record of what a page does.

The browser is that of the system. Tests that ask for `browser` or `page` are skipped where there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""The commands of Chromium and Chrome on Debian, Ubuntu, Fedora and the runners of GitHub."""

OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--no-first-run"),
)
"""`--no-sandbox`, because containers run as root. The others keep the browser itself off the network."""


def find_browser() -> str | None:
    """The path of the first command of `NAMES` that is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser for all tests of a process."""
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser: install Chromium or Chrome (one of {', '.join(NAMES)})")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield running
        running.close()


@dataclass
class Record:
    """What a page did.

    Attributes:
        requests: The URLs that it asked for, without `data:` and `blob:`.
        errors: Uncaught exceptions of its scripts, and error messages of the console.
        dialogs: The texts of alerts and other dialogs, which are dismissed.
    """

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


def watch(page: Page) -> Record:
    """Record what a page does from now on."""
    record = Record()
    page.on("request", lambda request: record.requests.append(request.url))
    page.on("pageerror", lambda error: record.errors.append(str(error)))
    page.on("console", lambda said: record.errors.append(said.text) if said.type == "error" else None)

    def dismiss(dialog: object) -> None:
        record.dialogs.append(dialog.message)  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", dismiss)
    return record


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new page in a profile of this test's own. Actions and expectations wait at most ten seconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(10_000)
    yield context.new_page()
    context.close()
