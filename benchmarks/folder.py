"""Caption a folder: pictures per second of this package, of transformers' pipeline, and of the image encoder alone.

python -m benchmarks.folder                                          # CPU: ViT-B, float32
python -m benchmarks.folder --dtype bfloat16 --beams 1 3             # the same in bfloat16
python -m benchmarks.folder --pictures 2000 --batch_sizes 16 64      # one GPU

Weights are random, so every caption has the maximum length: by default 13 tokens, COCO's median. The encoder alone, on
pixels that are read already, is the floor of the time. All sides have the same cores. They take turns, and the best
batch size of each counts. Rates are pictures per second of wall-clock time, and of processor time; ratios are of
wall-clock time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BlipForConditionalGeneration, pipeline

from benchmarks.common import RESULTS, machine, write_results
from benchmarks.loading import made_photograph
from benchmarks.workload import SIZES, made_images, made_processor, synchronise
from blip_recipe.captioning.pipeline import ImageToTextPipeline, caption_pipeline
from blip_recipe.captioning.writing import CaptionWriter
from blip_recipe.errors import run_command
from blip_recipe.models.processors import save_processor

Captions = dict[str, list[str]]
"""The captions that each side wrote last."""


def main() -> None:
    """Time all sides, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--turns", type=int, default=2, help="Turns of each side, of which the median counts.")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--tokens", type=int, default=13, help="Tokens of a caption, [DEC] included.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        model, pictures = Path(folder, "model"), Path(folder, "pictures")
        save_model(model, options.size)
        names = draw_photographs(pictures, options.pictures)
        rows = [row for beams in options.beams for row in compare(str(model), names, device, beams, options)]
    about = {"threads": torch.get_num_threads(), "dtype": options.dtype, "size": options.size, "tokens": options.tokens}
    output = options.output or RESULTS / f"folder_{options.size}_{options.dtype}_{device}.json"
    write_results(output, machine(["torch", "transformers"], **about), rows)


def save_model(folder: Path, size: str) -> None:
    """Save a captioner with random weights."""
    torch.manual_seed(0)
    BlipForConditionalGeneration(SIZES[size].config()).save_pretrained(folder)
    save_processor(made_processor(), folder)


def draw_photographs(folder: Path, count: int) -> list[str]:
    """Write JPEG files of 640 x 480 pixels, and return their paths."""
    folder.mkdir()
    paths = [folder / f"{number:06}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(made_photograph(number, 640, 480))
    return [str(path) for path in paths]


def compare(
    model: str, names: Sequence[str], device: str, beams: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure all sides with each batch size, and put the ratios of the best ones into the last row."""
    decoding = {"max_length": options.tokens, "num_beams": beams, "do_sample": False}
    loaded = {"device": device, "dtype": getattr(torch, options.dtype)}
    ours = caption_pipeline(model, **loaded, **decoding)
    stock = pipeline("image-text-to-text", model=model, **loaded)
    captions: Captions = {}
    sides: dict[str, Callable[[int], object]] = {
        "encoder alone": lambda batch_size: encode(ours, len(names), batch_size),
        "transformers": lambda batch_size: write_with_stock(stock, names, batch_size, decoding, captions),
        "ours": lambda batch_size: write_with_ours(ours, names, batch_size, captions),
    }
    kinds = [(side, batch_size) for batch_size in options.batch_sizes for side in sides]
    measured: dict[tuple[str, int], list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.turns):
        for side, batch_size in kinds:
            measured[side, batch_size].append(measure(sides[side], batch_size, len(names), torch.device(device)))
    rows: list[dict[str, Any]] = [
        {"beams": beams, "side": side, "batch size": batch_size, **medians(turns)}
        for (side, batch_size), turns in measured.items()
    ]
    best = {side: max(row[RATE] for row in rows if row["side"] == side) for side in sides}
    same = sum(one == two for one, two in zip(captions["ours"], captions["transformers"], strict=True))
    for row in rows:
        row |= {
            "of the floor": round(row[RATE] / best["encoder alone"], 2),
            "times transformers": round(row[RATE] / best["transformers"], 2),
            "captions as transformers": f"{same} of {len(names)}" if row["side"] == "ours" else "",
        }
    return rows


CPU_RATE, RATE = "pictures/s of processor time", "pictures/s"


def measure(work: Callable[[int], object], batch_size: int, pictures: int, device: torch.device) -> dict[str, float]:
    """Pictures per second of processor time and of wall-clock time."""
    synchronise(device)
    began, cpu = time.perf_counter(), time.process_time()
    work(batch_size)
    synchronise(device)
    return {
        RATE: round(pictures / (time.perf_counter() - began), 3),
        CPU_RATE: round(pictures / (time.process_time() - cpu), 3),
    }


def medians(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each rate."""
    return {rate: round(statistics.median(turn[rate] for turn in turns), 3) for rate in turns[0]}


@torch.inference_mode()
def encode(captioner: ImageToTextPipeline, pictures: int, batch_size: int) -> None:
    """Only the image encoder, on pixels that are in memory."""
    model: Any = captioner.model
    pixels = made_images(batch_size).to(captioner.device, model.dtype)
    for start in range(0, pictures, batch_size):
        model.vision_model(pixel_values=pixels[: pictures - start])


def write_with_ours(captioner: ImageToTextPipeline, names: Sequence[str], batch_size: int, captions: Captions) -> None:
    """What `blip-recipe caption` does with the names of pictures."""
    written = CaptionWriter(captioner).write_all(((name, name) for name in names), batch_size, len(names))
    captions["ours"] = [fields["caption"] for _, fields in written if isinstance(fields, dict)]


def write_with_stock(
    captioner: Any, names: Sequence[str], batch_size: int, decoding: dict[str, Any], captions: Captions
) -> None:
    """The pipeline of transformers 5, without a prompt."""
    found = captioner(images=list(names), text=[""] * len(names), batch_size=batch_size, generate_kwargs=decoding)
    captions["transformers"] = [each["generated_text"].strip() for each in found]


if __name__ == "__main__":
    run_command(main)
