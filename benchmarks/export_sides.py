"""What `benchmarks.export` compares: one side in a process of its own, which imports only what that side needs.

python -m benchmarks.export_sides '{"side": "ONNX Runtime fp32", "folder": ..., "threads": 1, ...}'

It prints a line of JSON when the first caption is there, and one for each case.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STATUS = Path("/proc/self/status")

Captioner = Callable[[np.ndarray, dict[str, Any]], list[list[int]]]
"""Captions pixels `(images, 3, height, width)` with arguments of `generate`; returns the new token ids."""


class Side(NamedTuple):
    """How a side is loaded, what of, and what it needs.

    Attributes:
        load: Takes the folder and the number of threads; returns the captioner, and a function that captions a file.
        files: Folder of its files below that of the benchmark.
        needs: The package, or the flag of the processor, without which it is left out.
    """

    load: Callable[[Path, int], tuple[Captioner, Callable[[Path], object]]]
    files: str
    needs: str


def load_stock(folder: Path, threads: int) -> tuple[Captioner, Callable[[Path], object]]:
    """The stock class of transformers, in float32."""
    import torch
    from PIL import Image
    from transformers import BlipForConditionalGeneration, BlipProcessor

    torch.set_num_threads(threads)
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder)

    def caption_file(path: Path) -> object:
        pixels = processor(images=Image.open(path), return_tensors="pt").pixel_values
        return processor.batch_decode(model.generate(pixel_values=pixels, **FIRST), skip_special_tokens=True)

    return partial(_generate_with_torch, model, torch.float32), caption_file


def load_ours(folder: Path, threads: int, dtype: str) -> tuple[Captioner, Callable[[Path], object]]:
    """This package's class in torch."""
    import torch

    from blip_recipe import caption_pipeline

    torch.set_num_threads(threads)
    pipeline = caption_pipeline(folder, device="cpu", dtype=dtype)
    generate = partial(_generate_with_torch, pipeline.model, getattr(torch, dtype))
    return generate, lambda path: pipeline(str(path), **FIRST)


def _generate_with_torch(model: Any, dtype: Any, pixels: np.ndarray, decoding: dict[str, Any]) -> list[list[int]]:
    import torch

    found = model.generate(pixel_values=torch.from_numpy(pixels).to(dtype), do_sample=False, **decoding)
    return [each[-(LENGTH - 1) :] for each in found.tolist()]


def load_runner(folder: Path, threads: int, engine: str) -> tuple[Captioner, Callable[[Path], object]]:
    """The runner without torch."""
    from blip_recipe.runtime.captioner import ExportedCaptioner

    captioner = ExportedCaptioner.load(folder, engine=engine, threads=threads)

    def generate(pixels: np.ndarray, decoding: dict[str, Any]) -> list[list[int]]:
        return captioner.generate(pixels, **decoding)[0][:, 0].tolist()

    return generate, lambda path: captioner.caption([path], **FIRST)


LENGTH = 13
"""Tokens of each caption, the start token included. All captions have as many, so that all sides do the same work."""

FIRST = {"num_beams": 1, "max_length": LENGTH, "min_length": LENGTH}
"""The decoding of the first caption."""

SIDES = {
    "transformers fp32": Side(load_stock, "model", "torch"),
    "torch fp32": Side(partial(load_ours, dtype="float32"), "model", "torch"),
    "torch bf16": Side(partial(load_ours, dtype="bfloat16"), "model", "amx_bf16"),
    "ONNX Runtime fp32": Side(partial(load_runner, engine="onnxruntime"), "fp32", "onnxruntime"),
    "ONNX Runtime fp16": Side(partial(load_runner, engine="onnxruntime"), "fp16", "onnxruntime"),
    "ONNX Runtime int8": Side(partial(load_runner, engine="onnxruntime"), "int8", "onnxruntime"),
    "ONNX Runtime int8_weights": Side(partial(load_runner, engine="onnxruntime"), "int8_weights", "onnxruntime"),
    "OpenVINO fp32": Side(partial(load_runner, engine="openvino"), "openvino", "openvino"),
    "OpenVINO bf16": Side(partial(load_runner, engine="openvino_bf16"), "openvino", "openvino"),
}
"""The sides by name; the first is what the others are compared with."""


def measure(given: dict[str, Any]) -> None:
    """Load a side, caption the picture, then the pixels in each case."""
    side, folder = SIDES[given["side"]], Path(given["folder"])
    caption, caption_file = side.load(folder / side.files, given["threads"])
    caption_file(folder / "picture.png")
    print(json.dumps({"first": True}), flush=True)
    pixels = np.load(folder / "pixels.npy")
    for batch, beams in given["cases"]:
        print(json.dumps(measure_case(caption, pixels[: given["pictures"][str(batch)]], batch, beams, given["turns"])))


def measure_case(caption: Captioner, pixels: np.ndarray, batch: int, beams: int, turns: int) -> dict[str, Any]:
    """Token ids, seconds and peak memory of a case. A turn that does not count comes first."""
    decoding = {"num_beams": beams, "max_length": LENGTH, "min_length": LENGTH}
    parts = [pixels[start : start + batch] for start in range(0, len(pixels), batch)]
    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")  # the peak begins anew
    token_ids = [ids for part in parts for ids in caption(part, decoding)]
    times = []
    for _ in range(turns):
        began, used = time.perf_counter(), time.process_time()
        for part in parts:
            caption(part, decoding)
        times.append((time.perf_counter() - began, time.process_time() - used))
    wall, processor = (statistics.median(each) for each in zip(*times, strict=True))
    return {
        "batch": batch,
        "beams": beams,
        "token_ids": token_ids,
        "seconds": wall / len(pixels),
        "processor_seconds": processor / len(pixels),
        "peak_mib": peak_mib(),
    }


def peak_mib() -> int | None:
    """The peak of this process' memory in MiB; None without Linux's `/proc`."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), None)


if __name__ == "__main__":
    measure(json.loads(sys.argv[1]))
