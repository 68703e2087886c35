"""Compare how many pictures per second a core loads with transformers alone in the same run. From the checkout:

python -m benchmarks.loading                                # synthetic photographs, and real ones if there are some
python -m benchmarks.loading --photographs FOLDER           # your own JPEGs

Times are for one core, 384 pixels, in batches. The other side is a common script: Pillow opens a picture, and the stock
image processor computes `pixel_values`. For training, the script adds torchvision's crop and flip; our side applies all
of BLIP's augmentation. Our side returns uint8 pixels, which the device normalises; one column includes that. The lower
bound is decoding alone. All sides take turns, and the median turn counts.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torchvision import transforms
from transformers import BlipImageProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks.common import RESULTS, machine, write_results
from blip_recipe.data.augmentation import CROP_SCALE, augment
from blip_recipe.data.pixels import normalize_pixels, read_pixels, resize_pixels, stack_pixels
from blip_recipe.data.resized_cache import cache_resized_pictures
from blip_recipe.errors import run_command

IMAGE_SIZE, BATCH = 384, 16
SHARED = Path(os.environ.get("BLIP_RECIPE_SHARED", Path(__file__).parents[2] / "shared"))
MADE = {"made, 640 x 480": (32, 640, 480), "made, 3000 x 2000": (8, 3000, 2000)}
"""Sets of synthetic pictures: number, width and height."""

Pictures = Sequence[Any]
Side = Callable[[Pictures], object]


def main() -> None:
    """Time all sides on each set, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, default=SHARED / "data" / "photos", help="A folder of JPEGs.")
    parser.add_argument("--turns", type=int, default=7, help="Turns of each side.")
    parser.add_argument("--output", type=Path, default=RESULTS / "loading_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = {name: [made_photograph(seed, *size) for seed in range(count)] for name, (count, *size) in MADE.items()}
    if photographs := [path.read_bytes() for path in sorted(options.photographs.rglob("*.jpg"))]:
        sets = {f"{len(photographs)} photographs": photographs} | sets
    results = [row for name, contents in sets.items() for row in compare(name, contents, options.turns)]
    packages = ["torch", "torchvision", "transformers", "pillow"]
    write_results(options.output, machine(packages, threads=torch.get_num_threads()), results)


def made_photograph(seed: int, width: int, height: int) -> bytes:
    """Make a JPEG with structure at all scales, like a photograph: noise of all octaves, weaker for fine scales."""
    rng, pixels = np.random.default_rng(seed), np.full((height, width, 3), 128.0)
    cells = 4
    while cells < width:
        grid = rng.integers(0, 256, (max(2, cells * height // width), cells, 3), dtype=np.uint8)
        layer = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer) - 128.0) * 2 / cells**0.5
        cells *= 2
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def compare(name: str, contents: list[bytes], turns: int) -> list[dict[str, Any]]:
    """Measure pictures per second of each side, without augmentation and with it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Dataset.from_dict({"image": [{"bytes": each, "path": None} for each in contents]})
        kept = cache_resized_pictures(rows.cast_column("image", ImageFeature(decode=False)), IMAGE_SIZE, Path(folder))
        small: Pictures = [kept.get(row, content) for row, content in enumerate(contents)]
        inputs: dict[str, Pictures] = {"ours, cached": small} if kept else {}
        return [
            {"set": name, "path": path, "pictures": len(contents), **rates(sides, contents, inputs, turns)}
            for path, sides in {"scoring": scoring_sides(), "training": training_sides()}.items()
        ]


def rates(
    sides: dict[str, Side], contents: list[bytes], inputs: dict[str, Pictures], turns: int
) -> dict[str, float | None]:
    """Measure pictures per second of each side, and their ratios. `inputs` replace `contents` for some sides."""
    seconds: dict[str, list[float]] = {name: [] for name in sides if name != "ours, cached" or inputs}
    for _ in range(turns):
        for name, times in seconds.items():
            # CPU time of this process only, so other processes do not matter.
            began = time.process_time()
            sides[name](inputs.get(name, contents))
            times.append(time.process_time() - began)
    found = {name: len(contents) / statistics.median(times) for name, times in seconds.items()}
    row: dict[str, float | None] = {name: round(found[name], 1) if name in found else None for name in sides}
    row["ours / stock"] = round(found["ours"] / found["stock"], 2)
    row["ours, cached / stock"] = round(found["ours, cached"] / found["stock"], 2) if inputs else None
    return row | {"ours / decoding alone": round(found["ours"] / found["decoding alone"], 2)}


def scoring_sides() -> dict[str, Side]:
    """The sides for scoring, without augmentation."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    stock, with_pillow = BlipImageProcessor(size=size), BlipImageProcessorPil(size=size)
    resize = partial(resize_pixels, image_processor=stock)
    ours = partial(in_batches, lambda each: stack_pixels([resize(read_pixels(content)) for content in each]))
    return {
        "decoding alone": partial(in_batches, lambda each: [open_with_pillow(content) for content in each]),
        "stock for Pillow": partial(in_batches, lambda each: with_stock(each, with_pillow)),
        "stock": partial(in_batches, lambda each: with_stock(each, stock)),
        "ours, normalised here": partial(
            in_batches,
            lambda each: normalize_pixels(stack_pixels([resize(read_pixels(content)) for content in each]), stock),
        ),
        "ours": ours,
        "ours, cached": ours,
    }


def training_sides() -> dict[str, Side]:
    """Pictures cropped at random."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    stock, with_pillow = BlipImageProcessor(size=size), BlipImageProcessorPil(size=size)
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE, scale=CROP_SCALE, interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
        ]
    )
    rng = np.random.default_rng(0)

    def augmented(each: Pictures) -> torch.Tensor:
        return stack_pixels([augment(read_pixels(content), IMAGE_SIZE, rng) for content in each])

    return {
        "decoding alone": partial(in_batches, lambda each: [open_with_pillow(content) for content in each]),
        "stock for Pillow": partial(in_batches, lambda each: with_stock(each, with_pillow, crop)),
        "stock": partial(in_batches, lambda each: with_stock(each, stock, crop)),
        "ours, normalised here": partial(in_batches, lambda each: normalize_pixels(augmented(each), stock)),
        "ours": partial(in_batches, augmented),
        "ours, cached": partial(in_batches, augmented),
    }


def in_batches(prepare: Side, contents: Pictures) -> None:
    """Call `prepare` on batches of `BATCH` pictures."""
    for start in range(0, len(contents), BATCH):
        prepare(contents[start : start + BATCH])


def open_with_pillow(content: bytes) -> Image.Image:
    """Open a picture as common scripts do."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def with_stock(
    contents: Pictures,
    image_processor: BlipImageProcessor | BlipImageProcessorPil,
    transform: Callable[[Image.Image], Image.Image] | None = None,
) -> torch.Tensor:
    """Compute `pixel_values` as common transformers scripts do."""
    pictures = [open_with_pillow(content) for content in contents]
    pictures = [transform(picture) for picture in pictures] if transform else pictures
    return image_processor(pictures, return_tensors="pt").pixel_values


if __name__ == "__main__":
    run_command(main)
