"""Users who do nothing wrong see no library's warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from coco import publish_base_model, publish_coco
from commands import CHECKOUT
from hub_server import HubServer

from blip_recipe import CaptionTrainingArguments

PROGRESS = re.compile(r"(\w[\w .:]*: *)?(\d+%\|[^|]*\| )?[\d,.]+\w*(/\d\S*)? ?\w* \[[^\]]*\]|\{'\w+': .*?\}")
"""A progress bar, or the scores that Trainer logs; other text may follow on the same line."""
EXPECTED = re.compile(r"INFO blip_recipe\.|== ")
"""Our own information, and the steps of `quiet_runs.py`."""


def test_training_publishing_and_loading_show_no_warnings(tmp_path: Path) -> None:
    for name in ("coco", "work"):
        (tmp_path / name).mkdir()
    with HubServer() as hub:
        publish_base_model(hub, tmp_path / "base")
        publish_coco(hub, tmp_path / "coco")
        done = subprocess.run(
            [sys.executable, str(CHECKOUT / "tests" / "quiet_runs.py"), str(tmp_path / "work")],
            env={**hub.environment(home=tmp_path / "home"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [PROGRESS.sub("", line).strip() for line in re.split(r"\n|\r|\x1b\[A", done.stderr)]
    assert "== quantized_adapter" in lines
    assert [line for line in lines if line and not EXPECTED.match(line)] == []


@pytest.mark.filterwarnings("error:.*checkpointing")
@pytest.mark.parametrize("name", ["activation", "gradient"])
def test_activation_checkpointing_has_two_names(name: str, tmp_path: Path) -> None:
    given = {f"{name}_checkpointing": True, f"{name}_checkpointing_kwargs": '{"use_reentrant": false}'}
    arguments = CaptionTrainingArguments(str(tmp_path), use_cpu=True, **given)  # type: ignore[arg-type]
    for each in ("activation", "gradient"):
        assert getattr(arguments, f"{each}_checkpointing") is True
        assert getattr(arguments, f"{each}_checkpointing_kwargs") == {"use_reentrant": False}
    assert not CaptionTrainingArguments(str(tmp_path), use_cpu=True).activation_checkpointing
