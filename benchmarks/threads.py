"""Compare one thread with all threads for models of several sizes, alone and beside a busy process.

python -m benchmarks.threads                 # 2 minutes; results/threads_cpu.json
python -m benchmarks.threads --seconds 1     # a quick run

Each row is a model of BLIP's kind. A step trains on 32 pictures of 96 x 96 pixels with a caption of 12 tokens each.
The steps of one and of all threads take turns. The busy process counts in a loop, so that it fills a core.
`blip_recipe.models.threads` chooses one thread for models of fewer parameters than its `TINY`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import BlipConfig, BlipForConditionalGeneration

from benchmarks.common import RESULTS, machine, write_results
from blip_recipe.errors import run_command
from blip_recipe.models.threads import TINY

SIZES = ((128, 2), (256, 4), (512, 6))
"""Width and layers. The first is that of the embedded tiny model."""

BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
"""A loop that ends with the process that started it, however that ends."""

IMAGES, PIXELS, TOKENS, VOCABULARY = 32, 96, 12, 500
TURNS = 3


def main() -> None:
    """Measure each size, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="Seconds of each turn.")
    parser.add_argument("--output", type=Path, default=RESULTS / "threads_cpu.json")
    options = parser.parse_args()
    threads = os.cpu_count() or 1
    rows = [compare(width, layers, threads, options.seconds) for width, layers in SIZES]
    write_results(options.output, machine(["torch", "transformers"], threads=threads, tiny=TINY), rows)


def compare(width: int, layers: int, threads: int, seconds: float) -> dict[str, Any]:
    """Steps per second of a model with one thread and with all, alone and beside a busy process."""
    model = BlipForConditionalGeneration(make_config(width, layers)).train()
    step = make_step(model)
    quiet = measure(step, threads, seconds)
    with busy_process():
        beside = measure(step, threads, seconds)
    size = sum(each.numel() for each in model.parameters())
    row: dict[str, Any] = {"parameters": size, "width": width, "layers": layers}
    for name, rates in {"alone": quiet, "beside a busy process": beside}.items():
        one, every = rates[1], rates[threads]
        row |= {
            f"{name}: steps/s, one thread": round(one, 2),
            f"{name}: all threads": round(every, 2),
            f"{name}: one / all": round(one / every, 2),
        }
    return row


def make_config(width: int, layers: int) -> BlipConfig:
    """The configuration of a small BLIP."""
    shape = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    text = {**shape, "encoder_hidden_size": width, "vocab_size": VOCABULARY}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    return BlipConfig(text_config=text | ids, vision_config={**shape, "image_size": PIXELS, "patch_size": PIXELS // 2})


def make_step(model: BlipForConditionalGeneration) -> Callable[[], None]:
    """A training step on made-up pictures and captions."""
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(IMAGES, 3, PIXELS, PIXELS, generator=generator)
    tokens = torch.randint(3, VOCABULARY, (IMAGES, TOKENS), generator=generator)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(pixel_values=pixel_values, input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(step: Callable[[], None], threads: int, seconds: float) -> dict[int, float]:
    """The best steps per second of several turns, by the number of threads."""
    best: dict[int, float] = {}
    for _ in range(TURNS):
        for number in (1, threads):
            torch.set_num_threads(number)
            step()
            best[number] = max(best.get(number, 0.0), rate(step, seconds))
    return best


def rate(step: Callable[[], None], seconds: float) -> float:
    """Steps per second."""
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        steps += 1
    return steps / (time.perf_counter() - began)


@contextmanager
def busy_process() -> Iterator[None]:
    """Run a process that fills a core."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    run_command(main)
