"""Measure everything that needs a GPU in one command, in under nine minutes. From the checkout:

make bench-gpu                                  # or python -m benchmarks.gpu
python -m benchmarks.gpu --parts large compile  # some parts
python -m benchmarks.gpu --quick                # a tiny model, also on a CPU: tries the benchmark out

The parts run one after the other, stock beside ours in each, the most valuable first. One that fails does not end the
others. The JSON is written after each part. No part begins after `--limit` seconds. The exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import BlipForConditionalGeneration, BlipProcessor

from benchmarks import generation, training
from benchmarks.common import RESULTS, machine
from benchmarks.from_files import CAPTIONS, StepEnds, again, ours_from_files, photographs, stock_from_files
from benchmarks.loading import open_with_pillow
from benchmarks.workload import IMAGE_SIZE, SIZES, made_processor, matmul_flop_rate, synchronise
from blip_recipe import caption_pipeline
from blip_recipe.captioning.writing import CaptionWriter
from blip_recipe.data.listing import read_ahead
from blip_recipe.errors import run_command

PACKAGES = ["torch", "torchvision", "transformers", "accelerate", "datasets", "peft", "bitsandbytes"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        base: A name of `SIZES` for all parts but one.
        large: A name of `SIZES` for the part `large`.
        base_batches: Images per training step of each side that are tried for `base`. The memory must suffice.
        large_batches: The same for `large`.
        steps: Timed training steps.
        exact_memory: Whether each turn on a CPU runs in a new process.
        captioned: Pictures that are captioned from end to end.
        caption_batch: Pictures that are captioned at once.
        photographs: Different pictures. They are used again until there are enough.
        workers: Numbers of processes that load pictures.
    """

    base: str
    large: str
    base_batches: Mapping[str, tuple[int, ...]]
    large_batches: Mapping[str, tuple[int, ...]]
    steps: int
    exact_memory: bool
    captioned: int
    caption_batch: int
    photographs: int
    workers: tuple[int, ...]


FULL = Scale(
    base="base",
    large="large",
    base_batches={"stock": (16, 32), "ours": (64, 128)},
    large_batches={"stock": (12,), "ours": (32, 64)},
    steps=6,
    exact_memory=True,
    captioned=5000,
    caption_batch=128,
    photographs=128,
    workers=(8, 16),
)
QUICK = Scale(
    base="tiny",
    large="tiny",
    base_batches={"stock": (1,), "ours": (1, 2)},
    large_batches={"stock": (1,), "ours": (2,)},
    steps=1,
    exact_memory=False,
    captioned=6,
    caption_batch=3,
    photographs=3,
    workers=(1,),
)


@dataclass(frozen=True)
class Work:
    """What a part needs: the device, its measured rate of matrix products, the scale, and a folder of models."""

    device: torch.device
    rate: float
    scale: Scale
    folder: Path

    @property
    def dtype(self) -> torch.dtype:
        """The precision of generation."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def main() -> None:
    """Run the parts, write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="Default: all, in this order.")
    parser.add_argument("--quick", action="store_true", help="A tiny model and few steps: shows that all parts run.")
    parser.add_argument("--limit", type=float, default=480, help="Seconds after which no part begins.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.quick):
        sys.exit("No GPU was found: expected one that torch can use. --quick tries the benchmark out on a CPU.")
    began = time.monotonic()
    scale = QUICK if options.quick else FULL
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        about, rate = prepare(scale, Path(folder))
        output = options.output or RESULTS / f"gpu_{'quick' if options.quick else about['device type']}.json"
        device = torch.device(about["device type"])
        for name in options.parts:
            started = time.monotonic()
            if started - began > options.limit:
                results[name] = [{"not run": f"{options.limit:.0f} s had passed"}]
            else:
                results[name] = attempt(name, Work(device, rate, scale, Path(folder)))
            about["seconds"][name] = round(time.monotonic() - started, 1)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n", encoding="utf-8")
            print(f"{name} ({about['seconds'][name]} s)", *map(json.dumps, results[name]), sep="\n  ", flush=True)
    if failed := [name for name, rows in results.items() if any("error" in row for row in rows)]:
        sys.exit(f"Failed: {', '.join(failed)}. {output} has the messages.")


def prepare(scale: Scale, folder: Path) -> tuple[dict[str, Any], float]:
    """Save the models, and describe the machine with its rate of matrix products."""
    for size in {scale.base, scale.large}:
        torch.manual_seed(0)
        BlipForConditionalGeneration(SIZES[size].config()).save_pretrained(folder / size)
        made_processor().save_pretrained(folder / size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matmul_flop_rate(device, torch.bfloat16 if device.type == "cuda" else torch.float32, width=8192)
    about = machine(
        PACKAGES,
        **{"device type": device.type, "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None},
        **{"matmul TFLOP/s": round(rate / 1e12, 3), "seconds": {}},
    )
    return about, rate


def attempt(name: str, work: Work) -> list[Row]:
    """The rows of a part. An error becomes a row, so the other parts still run."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows: list[Row] = []
    try:
        rows.extend(PARTS[name](work))
    except Exception as error:
        traceback.print_exc()
        rows.append({"error": f"{type(error).__name__}: {error}"[:500]})
    training.free_memory()
    return rows


def train_steps(mode: training.Mode, work: Work, *, large: bool = False, compiled: bool = False) -> Iterator[Row]:
    """Training steps with the batch on the device: speed, share of the matrix product's rate, peak and its estimate."""
    scale = work.scale
    size = scale.large if large else scale.base
    batches = scale.large_batches if large else scale.base_batches
    if compiled:  # compiling takes longer than all the steps
        batches = {side: sizes[-1:] for side, sizes in batches.items()}
    plan = training.Plan(size, batches, scale.steps, 1, compiled, scale.exact_memory)
    yield {"size": size, **training.compare(mode, str(work.folder / size), plan, work.device, work.rate)}


def generate(work: Work) -> Iterator[Row]:
    """Generation with the pixels on the device, for one beam and for three."""
    stock, ours = generation.build(work.scale.base, work.device, work.dtype)
    batch = torch.randn(work.scale.caption_batch, 3, IMAGE_SIZE, IMAGE_SIZE).to(work.device, work.dtype)
    for beams in (1, 3):
        yield {"size": work.scale.base, **generation.compare(stock, ours, batch, beams, len(batch), 3)}


def caption_files(work: Work) -> Iterator[Row]:
    """Captions of JPEG files from end to end, with three beams: reading, preparing, generating, decoding."""
    scale = work.scale
    paths = write_photographs(work)
    model, decoding = str(work.folder / scale.base), {"num_beams": 3, **generation.DECODING}
    pipeline = caption_pipeline(model, device=work.device, dtype=work.dtype, batch_size=scale.caption_batch, **decoding)
    writer = CaptionWriter(pipeline)

    def ours(number: int) -> list[str]:
        pictures = ((each, each) for each in again(paths, number))
        return [str(written["caption"]) for _, written in writer.write_all(pictures, scale.caption_batch)]  # type: ignore[index]

    stock_model = BlipForConditionalGeneration.from_pretrained(model, dtype=work.dtype).eval().to(work.device)
    processor = BlipProcessor.from_pretrained(model)

    def stock(number: int) -> list[str]:
        captions: list[str] = []
        files = again(paths, number)
        while batch := [open_with_pillow(Path(each).read_bytes()) for each in islice(files, scale.caption_batch)]:
            pixels = processor(images=batch, return_tensors="pt").pixel_values.to(work.device, work.dtype)
            with torch.inference_mode():
                captions += processor.batch_decode(
                    stock_model.generate(pixel_values=pixels, **decoding), skip_special_tokens=True
                )
        return captions

    row: Row = {"size": scale.base, "beams": 3, "images a batch": scale.caption_batch}
    written: dict[str, list[str]] = {}
    # A fifth is enough for the slower side: its speed does not change from batch to batch.
    for side, caption, number in (("stock", stock, scale.captioned // 5), ("ours", ours, scale.captioned)):
        caption(scale.caption_batch)
        began = time.perf_counter()
        written[side] = caption(max(number, 1))
        row[f"{side}: captions/s"] = round(len(written[side]) / (time.perf_counter() - began), 2)
    row["ours / stock"] = round(row["ours: captions/s"] / row["stock: captions/s"], 2)
    began = time.perf_counter()
    read = list(read_ahead(writer.read, again(paths, scale.captioned // 5), 2 * scale.caption_batch))
    row["ours: pictures read/s, without captions"] = round(len(read) / (time.perf_counter() - began), 1)
    row[f"ours: seconds for {scale.captioned:,} captions"] = round(scale.captioned / row["ours: captions/s"], 1)
    yield row


def train_from_files(work: Work) -> Iterator[Row]:
    """Training in full with the loader beside it, pictures decoded and augmented anew for each step."""
    scale = work.scale
    contents = photographs(scale.photographs)
    for workers in scale.workers:
        for side, build in (("stock", stock_from_files), ("ours", ours_from_files)):
            images = scale.base_batches[side][-1]
            times = StepEnds()
            warm_up, timed = training.WARM_UP_STEPS + workers, scale.steps
            arguments = {
                "output_dir": str(work.folder / "run"),
                **{"max_steps": warm_up + timed, "dataloader_num_workers": workers, "dataloader_pin_memory": True},
                **{"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True},
                "bf16": work.device.type == "cuda",
            }
            training.free_memory()
            trainer = build(work.folder / scale.base, contents, images, arguments, steps=warm_up + timed)
            trainer.add_callback(times)
            trainer.train()
            seconds = (times.ends[-1] - times.ends[warm_up - 1]) / timed
            yield {
                "size": scale.base,
                "side": side,
                "workers": workers,
                "images a step": images,
                "pairs/s": round(images * CAPTIONS / seconds, 1),
                "pictures read/s": round(images * (CAPTIONS if side == "stock" else 1) / seconds, 1),
            }
            del trainer  # a second one would not fit beside it


def profile(work: Work) -> Iterator[Row]:
    """Where our training step spends its time: the share that the device computes, and the longest kernels."""
    for mode in ("full", "lora"):
        images = work.scale.base_batches["ours"][-1]
        arguments: Row = {
            "output_dir": str(work.folder / "run"),
            **{"max_steps": 2, "report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True},
            "bf16": work.device.type == "cuda",
        }
        trainer = training.our_trainer(mode, str(work.folder / work.scale.base), images, arguments)
        trainer.train()
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        optimizer = trainer.optimizer

        def steps(trainer: Any = trainer, batch: Any = batch, optimizer: Any = optimizer) -> float:
            synchronise(work.device)
            began = time.perf_counter()
            for _ in range(work.scale.steps):
                trainer.training_step(trainer.model, batch)
                optimizer.step()
                optimizer.zero_grad()
            synchronise(work.device)
            return (time.perf_counter() - began) / work.scale.steps * 1000

        wall = steps()
        with torch.profiler.profile() as profiler:
            steps()
        spent = {
            event.key: (event.self_device_time_total or event.self_cpu_time_total) / work.scale.steps / 1000
            for event in profiler.key_averages()
            if work.device.type != "cuda" or event.device_type == torch.autograd.DeviceType.CUDA
        }
        longest = sorted(spent.items(), key=lambda each: -each[1])[:15]
        yield {
            **{"size": work.scale.base, "mode": mode, "images a step": images, "step (ms)": round(wall, 1)},
            "device computes (ms)": round(sum(spent.values()), 1),
            "longest (ms)": {name[:90]: round(each, 2) for name, each in longest},
        }
        del trainer, batch, optimizer, steps


def load_alone(work: Work) -> Iterator[Row]:
    """Pictures a second that our training loader reads when no step waits for them."""
    scale, contents = work.scale, photographs(work.scale.photographs)
    for workers in scale.workers:
        batches = scale.steps + 2 * workers
        arguments = {"output_dir": str(work.folder / "run"), "report_to": [], "dataloader_num_workers": workers}
        images = scale.base_batches["ours"][-1]
        trainer = ours_from_files(work.folder / scale.base, contents, images, arguments, steps=batches)
        loader: DataLoader[Any] = trainer.get_train_dataloader()
        ends = [time.perf_counter() for _ in loader]
        # The first batches of all workers arrive together, and the last without competition.
        seconds = (ends[-1] - ends[workers - 1]) / (len(ends) - workers)
        yield {"workers": workers, "pictures/s": round(images / seconds, 1), "cores": os.cpu_count()}


def write_photographs(work: Work) -> list[str]:
    """Paths of JPEG files of COCO's size."""
    paths = [work.folder / f"{number}.jpg" for number in range(work.scale.photographs)]
    for path, content in zip(paths, photographs(len(paths)), strict=True):
        path.write_bytes(content)
    return [str(path) for path in paths]


PARTS: dict[str, Callable[[Work], Iterator[Row]]] = {
    "full": partial(train_steps, "full"),
    "generation": generate,
    "captions": caption_files,
    "loader": train_from_files,
    "lora": partial(train_steps, "lora"),
    "frozen": partial(train_steps, "frozen"),
    "8bit": partial(train_steps, "8bit"),
    "large": partial(train_steps, "full", large=True),
    "large lora": partial(train_steps, "lora", large=True),
    "loader alone": load_alone,
    "profile": profile,
    "compile": partial(train_steps, "full", compiled=True),
}
"""The parts by name, the most valuable first."""

if __name__ == "__main__":
    run_command(main)
