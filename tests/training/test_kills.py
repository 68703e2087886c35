"""Kill real runs at bad moments: `python tests/kills.py --kills 50` does more of it."""

from __future__ import annotations

from pathlib import Path

from kills import run_kills


def test_a_run_killed_twice_ends_like_one_that_nobody_killed_with_one_commit(tmp_path: Path) -> None:
    report = run_kills(2, seed=0, place=tmp_path, kinds=["full"])
    # A run may end before its second kill; then another one is killed.
    assert not any(run["differences"] for run in report["runs"])
    assert report["kills"] == report["kills_without_difference"] == 2
