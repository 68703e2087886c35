"""Measure memory and speed of a stream over a million rows. From the checkout:

python -m benchmarks.streaming                 # a million rows of parquet, 100,000 rows of tars
python -m benchmarks.streaming --rows 20000    # fewer

Shards of 1,000 tiny pictures are hard links to a few real files, so they take no disk space. One process without
workers reads them as training does, with shuffling and decoding. The resident memory is that of the process at the
given row. The time to resume is from a saved position to its next row, with all files opened again.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from benchmarks.common import RESULTS, machine, write_results
from blip_recipe.captioning.arguments import CaptionArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.shards import open_stream
from blip_recipe.data.streaming import CaptionStream, Position
from blip_recipe.errors import run_command

SIDE, ROWS_A_SHARD, REAL_SHARDS = 32, 1000, 4
MIB = 2**20


def main() -> None:
    """Stream shards of each kind, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=max(ROWS.values()), help="Maximum rows per kind of shards.")
    parser.add_argument("--kinds", nargs="+", default=list(WRITERS), choices=list(WRITERS))
    parser.add_argument("--output", type=Path, default=RESULTS / "streaming_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = machine(["datasets", "torch", "pyarrow"], threads=1)
    with tempfile.TemporaryDirectory() as folder:
        results = [
            row for kind in options.kinds for row in measure(kind, Path(folder, kind), min(options.rows, ROWS[kind]))
        ]
    write_results(options.output, before, results)


def jpeg(seed: int) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, seeds: range) -> None:
    """A webdataset shard."""
    with tarfile.open(path, "w") as tar:
        for seed in seeds:
            for extension, content in (("jpg", jpeg(seed)), ("txt", f"picture {seed}".encode())):
                entry = tarfile.TarInfo(f"{seed:06}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_parquet(path: Path, seeds: range) -> None:
    """A parquet shard."""
    rows = [{"image": {"bytes": jpeg(seed), "path": None}, "text": f"picture {seed}"} for seed in seeds]
    table = Dataset.from_list(rows)
    table.cast(Features({**table.features, "image": ImageFeature()})).to_parquet(path)


WRITERS: dict[str, Callable[[Path, range], None]] = {"parquet": write_parquet, "tar": write_tar}
ROWS = {"parquet": 1_000_000, "tar": 100_000}


def make_shards(kind: str, folder: Path, shards: int) -> int:
    """Write a few shards, and link the others to them. Returns the bytes on disk."""
    folder.mkdir()
    real: list[Path] = []
    for number in range(shards):
        path = folder / f"train-{number:05}.{kind}"
        if number < REAL_SHARDS:
            WRITERS[kind](path, range(number * ROWS_A_SHARD, (number + 1) * ROWS_A_SHARD))
            real.append(path)
        else:
            path.hardlink_to(real[number % REAL_SHARDS])
    return sum(path.stat().st_size for path in real)


def stream_of(folder: Path) -> CaptionStream:
    """Open the stream as a recipe without augmentation does."""
    arguments = CaptionDataArguments(dataset_name=str(folder), streaming=True)
    return CaptionStream(
        open_stream(arguments),
        image_size=SIDE,
        captions_per_image=None,
        normalize_captions=True,
        augmentation="none",
        seed=0,
        shuffle_buffer_size=CaptionArguments().shuffle_buffer_size,
        on_bad_image="fail",
    )


def measure(kind: str, folder: Path, rows: int) -> list[dict[str, Any]]:
    """Measure resident memory and rate at 10,000, 100,000 and 1,000,000 rows, up to `rows`."""
    size = make_shards(kind, folder, rows // ROWS_A_SHARD)
    process, results = psutil.Process(os.getpid()), []
    stream, middle = stream_of(folder), Position(0)
    wanted = sorted({count for count in (10_000, 100_000, 1_000_000) if count < rows} | {rows})
    began, used = time.perf_counter(), time.process_time()
    for count, row in enumerate(stream, 1):
        if count == wanted[0] // 2:
            middle = row["progress"].position
        if count == wanted[0]:
            gc.collect()
            results.append(
                {
                    "shards": f"{rows // ROWS_A_SHARD:,} x {kind}",
                    "MiB on the disk": round(size / MIB, 1),
                    "rows": count,
                    "resident MiB": round(process.memory_info().rss / MIB),
                    "rows a second": round(count / (time.perf_counter() - began)),
                    "rows a second of the core": round(count / (time.process_time() - used)),
                    "seconds to go on in the middle": seconds_to_resume(folder, middle),
                }
            )
            wanted = wanted[1:]
            if not wanted:
                break
    return results


def seconds_to_resume(folder: Path, position: Position) -> float:
    """Seconds from opening the stream to the row after `position`."""
    began = time.perf_counter()
    stream = stream_of(folder)
    stream.positions = {0: position}
    next(iter(stream))
    return round(time.perf_counter() - began, 2)


if __name__ == "__main__":
    run_command(main)
