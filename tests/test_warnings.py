"""Users who do nothing wrong see no library's warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from coco import publish_base_model, publish_coco
from commands import CHECKOUT
from hub_server import HubServer

EXPECTED = re.compile(r"INFO blip_recipe\.|== |.*\d(%\||\w* \[\d\d:\d\d)")
"""Our own information, the steps of `quiet_runs.py`, and progress bars."""


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
    lines = [line.strip() for line in re.split(r"\n|\r|\x1b\[A", done.stderr)]
    assert "== quantized_adapter" in lines
    assert [line for line in lines if line and not EXPECTED.match(line)] == []
