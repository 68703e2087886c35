"""Caption a large folder, measure the memory, and check that the command resumes after it is killed.

python -m benchmarks.captioning                      # 2,000 pictures, killed three times
python -m benchmarks.captioning --pictures 20000

A tiny model with random weights captions JPEG files in nested folders, some of them broken: once without interruption,
and once with SIGKILL in between and resumed by the same command. The exit code is 1 if a line is missing, duplicate or
different, or if memory grows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import RESULTS, machine, write_results
from blip_recipe.data.listing import list_folder

CHECKOUT = Path(__file__).parents[1]
GROWTH_LIMIT = 40.0
"""Maximum growth in MiB of the median memory from the second quarter to the last. With pictures of all sizes, the
memory of the reading threads becomes constant after about 2,000 pictures; with small ones it does not grow."""

Sample = tuple[float, int, float]
"""Seconds since the start, lines written, resident memory in MiB."""


def main() -> None:
    """Draw, caption, kill, resume and compare; print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "captioning_cpu.json")
    options = parser.parse_args()
    about = machine(["torch", "transformers"])
    with tempfile.TemporaryDirectory() as folder:
        model, pictures = Path(folder, "model"), Path(folder, "pictures")
        build_model(model)
        draw_pictures(pictures, options.pictures)
        command = [sys.executable, "-m", "blip_recipe.caption", str(model), str(pictures), "--device", "cpu"]
        whole, pieces = Path(folder, "whole.jsonl"), Path(folder, "pieces.jsonl")
        runs = {"in one go": [watch(command, whole)]}
        runs["killed"] = caption_with_kills(command, pieces, options.kills, options.pictures)
        compare(whole, pieces, list(list_folder(str(pictures))))
    rows = [describe(name, number, samples) for name, parts in runs.items() for number, samples in enumerate(parts, 1)]
    write_results(options.output, about, rows)
    if rows[0]["growth (MiB)"] > GROWTH_LIMIT:
        sys.exit(f"memory grew by {rows[0]['growth (MiB)']} MiB: expected at most {GROWTH_LIMIT}")


def build_model(folder: Path) -> None:
    """Save a tiny captioner with random weights."""
    import torch

    from blip_recipe.captioning.tiny import build_tiny_captioner
    from blip_recipe.models.processors import save_processor

    torch.manual_seed(0)
    model, processor = build_tiny_captioner(["a red square on a blue ground"])
    model.save_pretrained(folder)
    save_processor(processor, folder)


def draw_pictures(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 240 to 1,200 pixels in folders of 100. One in fifty is truncated."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 100:04}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = random.integers(240, 1200, 2)
        colours = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).save(path)
        if number % 50 == 13:
            os.truncate(path, path.stat().st_size // 2)


def caption_with_kills(command: list[str], output: Path, kills: int, count: int) -> list[list[Sample]]:
    """Run `command` into `output` until it has `count` lines, killing and resuming it `kills` times.

    Returns the samples of each of the `kills + 1` runs.
    """
    runs = []
    for kill in range(1, kills + 1):
        before = output.read_bytes() if output.exists() else b""
        runs.append(watch(command, output, kill_at=count * kill // (kills + 1)))
        # Pictures that failed are tried again, and their lines replaced.
        captions = {line for line in before[: before.rfind(b"\n") + 1].splitlines() if b'"error": ' not in line}
        if not captions <= set(output.read_bytes().splitlines()):
            sys.exit(f"run {kill} changed captions that an earlier one had written")
    return [*runs, watch(command, output)]


def watch(command: list[str], output: Path, kill_at: int | None = None) -> list[Sample]:
    """Run `command` with `--output`, sample it 20 times a second, and kill it once `output` has `kill_at` lines."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    began = time.monotonic()
    process = subprocess.Popen([*command, "--output", str(output)], env=environment, stderr=subprocess.PIPE)
    memory = psutil.Process(process.pid)
    samples: list[Sample] = []
    lines, position = 0, 0
    while process.poll() is None:
        if output.exists():
            with output.open("rb") as file:
                file.seek(position)
                added = file.read()
            lines, position = lines + added.count(b"\n"), position + len(added)
        resident = memory.memory_info().rss / 2**20
        samples.append((round(time.monotonic() - began, 2), lines, round(resident, 1)))
        if kill_at is not None and lines >= kill_at:
            process.kill()
            process.wait()
        time.sleep(0.05)
    _, errors = process.communicate()
    if process.returncode != (0 if kill_at is None else -9):
        sys.exit(f"the command ended with {process.returncode}:\n{errors.decode(errors='replace')[-2000:]}")
    return samples


def compare(whole: Path, pieces: Path, pictures: list[str]) -> None:
    """Exit with an error unless both files have the same line for each of `pictures`, in order."""
    rows: dict[Path, list[dict[str, str]]] = {}
    for path in (whole, pieces):
        rows[path] = [json.loads(line) for line in path.read_bytes().splitlines()]
        if [row["image"] for row in rows[path]] != pictures:
            sys.exit(f"{path.name}: expected one line for each of {len(pictures):,} pictures, in order")
    if different := sum(one != two for one, two in zip(rows[whole], rows[pieces], strict=True)):
        sys.exit(f"{different} captions of the killed command differ from those of the other")


def describe(name: str, number: int, samples: list[Sample]) -> dict[str, Any]:
    """Build a row of the table: lines, seconds and memory of a run. Growth is from the second quarter to the last."""
    first, last = samples[0][1], samples[-1][1]
    started = next((seconds for seconds, lines, _ in samples if lines > first), samples[-1][0])
    working = [sample for sample in samples if sample[0] >= started]
    quarter = max(1, len(working) // 4)
    parts = (working[quarter:][:quarter], working[-quarter:])
    medians = [statistics.median(memory for *_, memory in part) for part in parts]
    rate = (last - first) / max(0.05, samples[-1][0] - started)
    return {
        "command": name,
        "run": number,
        "lines": last - first,
        "seconds to the first line": started,
        "pictures a second": round(rate, 1),
        "peak (MiB)": max(memory for *_, memory in samples),
        "growth (MiB)": round(medians[1] - medians[0], 1),
        "memory (lines: MiB)": {lines: memory for _, lines, memory in working[:: max(1, len(working) // 20)]},
    }


if __name__ == "__main__":
    main()
