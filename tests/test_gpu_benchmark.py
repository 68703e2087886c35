"""The benchmark of GPUs, tried out on a CPU with a tiny model, so a GPU's time is not lost to a slip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import CHECKOUT, run_checked

PARTS: dict[str, set[str]] = {
    "full": {"ours / stock: pairs/s", "ours: peak GiB", "ours: peak GiB as estimated", "ours: share of matmul rate"},
    "captions": {"ours / stock", "ours: seconds for 6 captions", "ours: pictures read/s, without captions"},
    "loader": {"side", "workers", "pairs/s"},
}
"""Parts that show most of the code, with fields of their rows."""


def measure(folder: Path, *options: str) -> dict[str, list[dict[str, Any]]]:
    output = folder / "gpu.json"
    run_checked("benchmarks.gpu", "--quick", "--output", output, *options, cwd=CHECKOUT, timeout=1500)
    return json.loads(output.read_text())["results"]


def test_the_benchmark_runs(tmp_path: Path) -> None:
    results = measure(tmp_path, "--parts", *PARTS)
    assert list(results) == list(PARTS)
    for part, fields in PARTS.items():
        assert results[part], part
        for row in results[part]:
            assert fields <= row.keys(), part
    assert {row["side"] for row in results["loader"]} == {"stock", "ours"}


@pytest.mark.long  # compiling alone takes minutes
@pytest.mark.timeout(1800)
def test_every_part_of_the_benchmark_runs(tmp_path: Path) -> None:
    results = measure(tmp_path, "--limit", "1500")
    assert len(results) == 12
    assert all(row["same captions"] == "3 of 3" for row in results["generation"])
