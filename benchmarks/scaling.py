"""Measure how time and memory grow with the number of images, from reading the data to the end of an epoch.

python -m benchmarks.scaling                              # 1,000, 10,000 and 100,000 synthetic rows
python -m benchmarks.scaling --images 1000 1000000

The data are parquet shards of small synthetic pictures with five captions each. Each number of images is measured in
its own process: reading the split (`read`), checking every row (`look`), and one epoch of data loading (`epoch`).
"""

from __future__ import annotations

import argparse
import io
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.workload import PeakMemory
from blip_recipe.captioning.data import build_dataset
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.checks import check_splits
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.data.load import load_splits
from blip_recipe.errors import run_command
from blip_recipe.training.caption_collator import CaptionCollator

SHARD, BATCH, SIDE = 10_000, 32, 32
CAPTIONS = [f"a made picture with number {number}" for number in range(5)]


def main() -> None:
    """Measure each number of images, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling_cpu.json")
    options = parser.parse_args()
    rows = []
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            make_rows(Path(folder), images)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                rows.append(fresh.submit(measure, folder, images).result())
    write_results(options.output, machine(["torch", "datasets"]), rows)


def make_rows(folder: Path, images: int) -> None:
    """Write parquet shards with `images` rows."""
    (folder / "data").mkdir()
    for shard, start in enumerate(range(0, images, SHARD)):
        count = min(SHARD, images - start)
        pictures = [{"bytes": picture(start + row), "path": None} for row in range(count)]
        pq.write_table(
            pa.table({"image": pictures, "captions": [CAPTIONS] * count}),
            folder / "data" / f"train-{shard:05}.parquet",
        )


def picture(number: int) -> bytes:
    """A small JPEG that depends on the number."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE)).save(file, format="JPEG")
    return file.getvalue()


def measure(folder: str, images: int) -> dict[str, Any]:
    """Measure the seconds of each step, and the peak memory of all."""
    torch.set_num_threads(1)
    arguments = CaptionDataArguments(dataset_name=folder)
    training = CaptionTrainingArguments(folder, augmentation="none", seed=0)
    processor = build_tiny_captioner(CAPTIONS)[1]
    collate = CaptionCollator(processor, normalize_captions=False)
    found: dict[str, Any] = {}

    def read() -> None:
        found["splits"] = load_splits(arguments)

    def look() -> None:
        found["splits"] = check_splits(found["splits"], arguments).rows

    def epoch() -> None:
        dataset = build_dataset(found["splits"]["train"], training, processor, training=True)
        assert isinstance(dataset, CaptionDataset)
        for start in range(0, len(dataset), BATCH):
            collate([dataset[row] for row in range(start, min(start + BATCH, len(dataset)))])

    memory = PeakMemory(torch.device("cpu"))
    seconds = {work.__name__: seconds_of(work) for work in (read, look, epoch)}
    return {
        "images": images,
        **{f"{name}: seconds": round(each, 2) for name, each in seconds.items()},
        "milliseconds an image": round(1000 * sum(seconds.values()) / images, 3),
        "peak MiB": round(memory.increase() / 2**20),
    }


if __name__ == "__main__":
    run_command(main)
