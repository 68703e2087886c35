"""Compare the training speed with a plain transformers script in the same run. From the checkout:

python -m benchmarks.training                                        # CPU: base width, 4+4 layers, 384 pixels, fp32
python -m benchmarks.training --size base --batch_sizes 32 64 128    # one GPU: ViT-B, bf16
python -m benchmarks.training --size large --batch_sizes 16 32 64    # one GPU: ViT-L, bf16

Weights are random, pictures are synthetic, and every picture has five captions. The other side is `Seq2SeqTrainer` with
the stock class, one caption per row and padding masked. Both sides take turns with the same pairs, and the median step
counts. The lower bound ("floor") is the time of the necessary arithmetic (`workload.Size.step_flop`) at the rate of a
large matrix product, measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast, get_args

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    BlipForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from benchmarks.common import RESULTS, machine, write_results
from benchmarks.workload import (
    CAPTION_LENGTHS,
    SIZES,
    Mode,
    PeakMemory,
    caption_texts,
    made_captions,
    made_images,
    made_processor,
    matmul_flop_rate,
    saved_bytes,
    synchronise,
)
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.data.dataset import PictureDataset
from blip_recipe.errors import run_command
from blip_recipe.models.adapters import add_lora, lora_config, quantization_config, quantization_of
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.models.text import IGNORED
from blip_recipe.training.memory import caption_step, estimate_peak_bytes

CAPTIONS = len(CAPTION_LENGTHS)
WARM_UP_STEPS = 2
"""The first step allocates and compiles; on a GPU the second still tunes."""
Measured = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        size: A name of `SIZES`.
        batch_sizes: Images per step of each side. The best one counts.
        steps: Timed steps per turn.
        turns: Turns of each side.
        torch_compile: Whether both sides compile the model.
        exact_memory: Whether each turn on a CPU runs in a new process, where memory of earlier turns does not count.
    """

    size: str
    batch_sizes: Mapping[str, Sequence[int]]
    steps: int = 3
    turns: int = 2
    torch_compile: bool = False
    exact_memory: bool = True


def main() -> None:
    """Time both sides in each mode, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="small is base width with 4+4 layers.")
    parser.add_argument(
        "--modes", nargs="+", choices=get_args(Mode), default=["full", "frozen", "lora"], help="The first is full."
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[2], help="Images per step; the best one counts.")
    parser.add_argument("--steps", type=int, default=3, help="Timed steps per turn.")
    parser.add_argument("--turns", type=int, default=2, help="Turns of each side.")
    parser.add_argument("--torch_compile", action="store_true", help="Compile the model, on both sides.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matmul_flop_rate(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    batch_sizes = dict.fromkeys(SIDES, options.batch_sizes)
    plan = Plan(options.size, batch_sizes, options.steps, options.turns, options.torch_compile)
    with tempfile.TemporaryDirectory() as folder:
        BlipForConditionalGeneration(SIZES[plan.size].config()).save_pretrained(folder)
        rows = [compare(mode, folder, plan, device, rate) for mode in options.modes]
    for row in rows:
        row["ours / stock trained in full: pairs/s"] = round(row["ours: pairs/s"] / rows[0]["stock: pairs/s"], 2)
    output = options.output or RESULTS / f"training_{options.size}_{device.type}.json"
    about = {
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "matmul TFLOP/s": round(rate / 1e12, 3),
    }
    write_results(output, machine(["torch", "transformers", "peft", "bitsandbytes"], **about), rows)


def compare(mode: Mode, folder: str, plan: Plan, device: torch.device, rate: float) -> dict[str, Any]:
    """Compare both sides, each at its best batch size. `folder` holds a model of the plan's size."""
    measured: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for sizes in zip_longest(*(plan.batch_sizes[side] for side in SIDES)):
        turns: dict[tuple[str, int], list[Measured]] = defaultdict(list)
        for _ in range(plan.turns):
            for side, images in zip(SIDES, sizes, strict=True):
                if images is not None:
                    turns[side, images] += run_apart(side, mode, folder, images, plan, device)
        for (side, images), each in turns.items():
            if len(each) == plan.turns:
                seconds = statistics.median(turn["seconds"] for turn in each)
                measured[side].append(each[0] | {"seconds": seconds / images, "images": images})
    if short := [side for side, found in measured.items() if not found]:
        raise MemoryError(f"{mode}: {short} ran out of memory; images a step were {plan.batch_sizes}")
    stock, ours = (min(measured[side], key=lambda each: each["seconds"]) for side in SIDES)
    floor = SIZES[plan.size].step_flop(mode, 1) / rate
    row: dict[str, Any] = {"mode": mode}
    for side, best in (("stock", stock), ("ours", ours)):
        row |= {
            f"{side}: pairs/s": round(CAPTIONS / best["seconds"], 3),
            f"{side}: images a step": best["images"],
            f"{side}: activations MiB an image": round(best["activations"] / best["images"] / 2**20, 1),
            f"{side}: peak GiB": round(best["peak"] / 2**30, 2),
        }
    return row | {
        "ours: peak GiB as estimated": round(ours["estimate"] / 2**30, 2),
        "ours / stock: pairs/s": round(stock["seconds"] / ours["seconds"], 2),
        "ours / stock: activations": round(
            ours["activations"] / ours["images"] / (stock["activations"] / stock["images"]), 3
        ),
        "floor: pairs/s": round(CAPTIONS / floor, 3),
        "ours: share of matmul rate": round(floor / ours["seconds"], 3),
        "stock: share of matmul rate": round(floor / stock["seconds"], 3),
    }


def run_apart(side: str, mode: Mode, folder: str, images: int, plan: Plan, device: torch.device) -> list[Measured]:
    """Measure one side without memory of earlier turns: on a CPU in a new process, on a GPU after freeing it."""
    if device.type != "cuda" and plan.exact_memory:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            return fresh.submit(run_turn, side, mode, folder, images, plan, device).result()
    measured = run_turn(side, mode, folder, images, plan, device)
    free_memory()
    return measured


def free_memory() -> None:
    """Free what earlier turns left: compiled code, circles of objects, and the GPU's cache."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_turn(side: str, mode: Mode, folder: str, images: int, plan: Plan, device: torch.device) -> list[Measured]:
    """Measure one side. The result is empty if it runs out of memory."""
    arguments: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": WARM_UP_STEPS + plan.steps,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "bf16": device.type == "cuda",
        "torch_compile": plan.torch_compile,
        "dataloader_num_workers": 0,
    }
    warm_up(device)
    memory = PeakMemory(device)
    try:
        return [measure(SIDES[side](mode, folder, images, arguments), memory)]
    except torch.OutOfMemoryError:
        return []


def warm_up(device: torch.device) -> None:
    """Run a small step, so the memory of torch's own libraries does not count as the model's."""
    layer = torch.nn.Linear(64, 64).to(device)
    layer(torch.randn(64, 64, device=device)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()


def measure(trainer: Trainer, memory: PeakMemory) -> Measured:
    """Measure the median seconds of a step, its peak memory (also as estimated), and the bytes of activations."""
    times = StepTimes(memory.device)
    trainer.add_callback(times)
    trainer.train()
    peak = memory.increase()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    with trainer.accelerator.autocast():
        activations = saved_bytes(model, lambda: trainer.compute_loss(model, batch))
    measured = {"seconds": statistics.median(times.seconds[WARM_UP_STEPS:]), "activations": activations, "peak": peak}
    if isinstance(trainer, CaptionTrainer):
        arguments: Any = trainer.args
        step = caption_step(len(batch["input_ids"]), sum(CAPTION_LENGTHS))
        measured["estimate"] = estimate_peak_bytes(model, arguments, step, checkpointing=False)
    return measured


def stock_trainer(mode: Mode, folder: str, images: int, arguments: dict[str, Any]) -> Trainer:
    """Build the trainer of a plain transformers script: one caption per row, `[DEC]` first, padding masked."""
    model = prepare(BlipForConditionalGeneration, mode, folder)
    length = max(CAPTION_LENGTHS)
    rows = []
    for picture, captions in zip(made_images(images), made_captions(images), strict=True):
        for ids in captions:
            padded = torch.nn.functional.pad(ids, (0, length - len(ids)))
            mask = (torch.arange(length) < len(ids)).long()
            labels = padded.masked_fill(mask == 0, IGNORED)
            rows.append({"pixel_values": picture, "input_ids": padded, "attention_mask": mask, "labels": labels})
    training = Seq2SeqTrainingArguments(
        per_device_train_batch_size=images * CAPTIONS, remove_unused_columns=False, **arguments
    )
    return Seq2SeqTrainer(
        model=model, args=training, train_dataset=cast("Any", rows), data_collator=default_data_collator
    )


def our_trainer(mode: Mode, folder: str, images: int, arguments: dict[str, Any]) -> Trainer:
    """Build a `CaptionTrainer` as `blip_recipe.finetune` does, with batches in the layout of its collator."""
    model = prepare(BlipForCaptioning, mode, folder)
    model.use_sdpa()
    return CaptionTrainer(
        model,
        CaptionTrainingArguments(per_device_train_batch_size=images, **arguments),
        MadeRows(images),
        processing_class=made_processor(),
        data_collator=default_data_collator,
    )


class MadeRows(PictureDataset):
    """Synthetic pictures with five captions each, in the layout of the collator."""

    def __init__(self, images: int) -> None:
        self.pictures, self.captions = made_images(images), made_captions(images)
        # The trainer looks at the rows before it begins.
        files = [{"bytes": str(number).encode(), "path": None} for number in range(images)]
        self.rows = Dataset.from_dict({"image": files, "captions": caption_texts(images)})

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> dict[str, Any]:
        labels = torch.cat(self.captions[row])
        positions = torch.cat([torch.arange(len(ids)) for ids in self.captions[row]])
        return {
            "pixel_values": self.pictures[row],
            "input_ids": labels,
            "position_ids": positions,
            "labels": labels.masked_fill(positions == 0, IGNORED),
        }

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: all epochs are equal."""


SIDES = {"stock": stock_trainer, "ours": our_trainer}


def prepare(model_class: Any, mode: Mode, folder: str) -> Any:
    """Prepare the model of a mode with either class."""
    quantized = mode == "8bit"
    place: dict[str, Any] = {"device_map": {"": "cuda" if torch.cuda.is_available() else "cpu"}} if quantized else {}
    model = model_class.from_pretrained(
        folder, quantization_config=quantization_config("8bit" if quantized else None), **place
    )
    if mode == "frozen":
        model.vision_model.requires_grad_(False)
    if mode in ("lora", "8bit"):
        config = cast(LoraConfig, lora_config(ModelArguments(use_peft=True)))
        config.target_modules = BlipForCaptioning.lora_layers
        model = add_lora(model, config) if isinstance(model, BlipForCaptioning) else stock_lora(model, config)
    return model


def stock_lora(model: Any, config: LoraConfig) -> Any:
    """Wrap the stock class with peft alone. Its gradient checkpointing fails for BLIP."""
    if quantization_of(model):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, config)


class StepTimes(TrainerCallback):
    """Record the seconds of each step, from the batch on the device to the updated weights."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began = device, 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        synchronise(self.device)
        self.began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop it."""
        synchronise(self.device)
        self.seconds.append(time.perf_counter() - self.began)


if __name__ == "__main__":
    run_command(main)
