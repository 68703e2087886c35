"""Compare the ways to run a captioner on a CPU in one run: torch, ONNX Runtime and OpenVINO. From the checkout:

python -m benchmarks.export                    # ViT-B, one thread; 13 minutes of processor time
python -m benchmarks.export --size small       # base width, 4+4 layers

Weights are random, and each caption has 12 tokens. Each side runs in a process of its own, one after another, with the
same number of threads. Times are from pixels to token ids, after one turn that does not count. A caption is equal if
all its token ids are those of transformers. Random weights make near-ties, so trained models agree more often.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine, write_results
from benchmarks.export_sides import SIDES
from blip_recipe.errors import run_command

CASES = [(1, 1), (1, 3), (8, 1), (8, 3)]
"""Batch size and number of beams."""

PICTURES = {1: 2, 8: 8}
"""Number of pictures for each batch size."""

PROCESSOR = Path("/proc/cpuinfo")


def main() -> None:
    """Make the folders, measure each side, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "base"), default="base", help="small: base width, 4+4 layers.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each side.")
    parser.add_argument("--turns", type=int, default=1, help="Turns that count; the median counts.")
    parser.add_argument("--folder", type=Path, help="Make the models here, and keep them for the next run.")
    parser.add_argument("--output", type=Path, default=RESULTS / "export_cpu.json")
    options = parser.parse_args()
    place = nullcontext(str(options.folder)) if options.folder else tempfile.TemporaryDirectory()
    with place as made:
        folder = Path(made)
        if not (folder / "pixels.npy").exists():
            subprocess.run([sys.executable, "-m", "benchmarks.export_models", options.size, made], check=True)
        found = {name: measure(name, folder, options) for name in SIDES if can_run(name)}
        sizes = {name: sum(path.stat().st_size for path in (folder / SIDES[name].files).iterdir()) for name in found}
    rows = [row for name in found for row in describe(name, found, sizes[name])]
    about = {
        "size": options.size,
        "threads": options.threads,
        "left out": [name for name in SIDES if name not in found],
    }
    write_results(options.output, machine(["torch", "transformers", "onnxruntime", "openvino"], **about), rows)


def can_run(name: str) -> bool:
    """Whether this machine has the package or the instructions that a side needs."""
    needs = SIDES[name].needs
    if needs.startswith("amx"):
        return PROCESSOR.exists() and needs in PROCESSOR.read_text()
    return find_spec(needs) is not None


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a side: seconds from its start to its first caption, and what it prints of each case."""
    given = {
        "side": name,
        "folder": str(folder),
        "threads": options.threads,
        "turns": options.turns,
        "cases": CASES,
        "pictures": PICTURES,
    }
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    words = [sys.executable, "-m", "benchmarks.export_sides", json.dumps(given)]
    began = time.perf_counter()
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = (json.loads(line) for line in process.stdout if line.startswith("{"))
        next(lines)
        first = time.perf_counter() - began
        cases = list(lines)
    if process.returncode or len(cases) != len(CASES):
        raise RuntimeError(f"{name} ended with {process.returncode} after {len(cases)} of {len(CASES)} cases")
    print(f"{name}: {first:.1f} s to the first caption", file=sys.stderr)
    return {"first": first, "cases": cases}


def describe(name: str, found: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """The rows of a side; ratios are of captions per second of processor time."""
    rows = []
    for case, other in zip(found[name]["cases"], found[next(iter(SIDES))]["cases"], strict=True):
        pairs = list(zip(case["token_ids"], other["token_ids"], strict=True))
        rows.append(
            {
                "side": name,
                "batch": case["batch"],
                "beams": case["beams"],
                "captions/s": round(1 / case["seconds"], 3),
                "per processor second": round(1 / case["processor_seconds"], 3),
                "/ transformers": round(other["processor_seconds"] / case["processor_seconds"], 2),
                "peak MiB": case["peak_mib"],
                "equal captions": f"{sum(a == b for a, b in pairs)} of {len(pairs)}",
                "first caption, s": round(found[name]["first"], 1),
                "files, MB": round(size / 1e6),
            }
        )
    return rows


if __name__ == "__main__":
    run_command(main)
