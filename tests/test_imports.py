"""The plan of the package is held by `make lint`: planted violations are found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import CHECKOUT
from imports import PACKAGE, find_faults


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, with the contracts beside it."""
    shutil.copytree(PACKAGE, tmp_path / "blip_recipe", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(CHECKOUT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path / "blip_recipe"


def lint(package: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    arguments = [str(command), "--no-cache"]
    return subprocess.run(arguments, cwd=package.parent, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("vqa/metrics.py", "from blip_recipe.captioning.arguments import CaptionArguments"),
        ("models/weights.py", "from blip_recipe.training.checkpoints import checksum"),
        ("training/stop_signals.py", "def late():\n    from blip_recipe.training.trainer import BlipTrainer"),
        (
            "data/captions.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from blip_recipe.card import facts",
        ),
        ("captioning/data.py", "from blip_recipe.captioning.trainer import CaptionTrainer"),
        ("metrics/bleu.py", "from blip_recipe.finetune import main"),
    ],
    ids=["a task imports a task", "upwards", "upwards, late", "upwards, for types", "a circle", "a command"],
)
def test_an_import_the_wrong_way_is_found(package: Path, module: str, line: str) -> None:
    assert lint(package).returncode == 0
    path = package / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    found = lint(package)
    assert found.returncode != 0
    assert "BROKEN" in found.stdout


def test_late_imports_and_strangers_at_the_top_are_found(package: Path) -> None:
    assert find_faults(package) == []
    (package / "helpers.py").write_text("")
    path = package / "data" / "captions.py"
    path.write_text(f"{path.read_text()}\ndef late():\n    import datasets\n")
    faults = find_faults(package)
    assert faults[0].startswith("helpers.py: only commands")
    assert "datasets is imported inside a function" in faults[1]
    assert len(faults) == 2
