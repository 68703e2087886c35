"""CapFilt's loop through pre-training improves the captioner, with one seed of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pretraining_loop import Loop, read_options


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_loop_improves_the_captioner(tmp_path: Path) -> None:
    loop = Loop(read_options([]), tmp_path, seed=1)
    loop.run()
    assert loop.results["CIDEr, loop"] > loop.results["CIDEr, without"]
