"""Every error message of the package has a row in docs/troubleshooting, with its way out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from commands import CHECKOUT

FOLDER = CHECKOUT / "docs/troubleshooting"
UPDATE = "run `python docs/troubleshooting/messages.py`, and write the rows that it asks for"


@pytest.fixture
def messages() -> ModuleType:
    """The module that compares tables and messages."""
    spec = importlib.util.spec_from_file_location("messages", FOLDER / "messages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_message_has_a_row(messages: ModuleType) -> None:
    reworded, missing, stale = messages.compare()
    assert not {**reworded, **missing, **stale}, UPDATE


def test_every_row_says_why_and_what_to_do(messages: ModuleType) -> None:
    for page in FOLDER.glob("*.md"):
        rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
        assert rows
        for row in rows:
            cells = row.strip("|").split(" | ")
            assert len(cells) == 3, row
            assert all(cell.strip() for cell in cells), row


def test_a_message_is_shown_by_its_own_words(
    messages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "blip_recipe"
    package.mkdir()
    (package / "one.py").write_text(
        "def check(name, size):\n"
        "    missing = f'{name} has no picture'\n"
        "    if not size:\n"
        "        raise RecipeError(missing)\n"
        "    if size < 0:\n"
        "        raise SaveError(f'size is {size}: expected ' + 'more')\n"
        "    raise NotImplementedError('for developers alone')\n"
    )
    monkeypatch.setattr(messages, "PACKAGE", package)
    assert messages.find_messages() == {
        "… has no picture": "blip_recipe/one.py:4",
        "size is …: expected more": "blip_recipe/one.py:6",
    }


def test_reworded_messages_are_replaced_and_new_ones_asked_for(
    messages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, folder = tmp_path / "blip_recipe", tmp_path / "docs"
    package.mkdir()
    folder.mkdir()
    (package / "one.py").write_text(
        "raise RecipeError(f'{file} cannot be parsed as JSON: {error}')\n"
        "raise RecipeError('There is nothing to read.')\n"
    )
    page = folder / "data.md"
    page.write_text("| `… cannot be read as JSON: …` | It is broken. | Repair it. |\n| `No more.` | Why. | What. |\n")
    monkeypatch.setattr(messages, "PACKAGE", package)
    monkeypatch.setattr(messages, "FOLDER", folder)
    assert messages.main() == 1
    assert page.read_text().startswith("| `… cannot be parsed as JSON: …` | It is broken. | Repair it. |\n")
    printed = capsys.readouterr().out
    assert "no row: There is nothing to read. (blip_recipe/one.py:2)" in printed
    assert "no such message: No more. (data.md)" in printed
