"""Compare the time of a self-critical training step with a cross-entropy step on the same images. From the checkout:

python -m benchmarks.scst                                   # CPU: base width, 4+4 layers, 384 pixels, fp32
python -m benchmarks.scst --size base --images 32           # one GPU: ViT-B, bf16

Weights are random, pictures are synthetic, and every picture has five captions and five samples. A model with random
weights rarely ends a caption, so samples have the full `--max_length` tokens: 14 by default, like COCO's longer
captions. Both sides take turns, and the median step counts. For scoring, the time of its thread and the time that the
step waits for it are measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import default_data_collator

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.training import StepTimes
from benchmarks.workload import SIZES, made_captions, made_images, made_processor
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.scst import ScstTrainer
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments, ScstTrainingArguments
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.errors import run_command
from blip_recipe.models.text import IGNORED

SAMPLES = 5


def main() -> None:
    """Time both sides, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--images", type=int, default=2, help="Images per step.")
    parser.add_argument("--steps", type=int, default=2, help="Timed steps per turn, after one warm-up step.")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--max_length", type=int, default=14, help="Tokens of every sample, [DEC] included.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    scoring: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.turns):
            for side in SIDES:
                seconds[side] += run_turn(side, folder, options, device, scoring)
    xe, scst = (statistics.median(seconds[side]) for side in SIDES)
    worked, waited = (statistics.median(column) for column in zip(*scoring, strict=True))
    row = {
        "images a step": options.images,
        "tokens a sample": options.max_length - 1,
        "cross entropy: s a step": round(xe, 3),
        "self-critical: s a step": round(scst, 3),
        "self-critical / cross entropy": round(scst / xe, 2),
        "scoring: share of the step": round(worked / scst, 4),
        "waiting for scores: share of the step": round(waited / scst, 4),
    }
    output = options.output or RESULTS / f"scst_{options.size}_{device.type}.json"
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    write_results(output, machine(["torch", "transformers"], gpu=gpu, threads=torch.get_num_threads()), [row])


class TimedTrainer(ScstTrainer):
    """Record how long scoring takes, and how long the step waits for it."""

    times: list[tuple[float, float]]

    def _score(self, *args: Any) -> Any:
        began = time.perf_counter()
        scored = super()._score(*args)
        self.worked = time.perf_counter() - began
        return scored

    def _wait_for_scores(self, scored: Any) -> Any:
        waited = seconds_of(scored.result)
        self.times.append((self.worked, waited))
        return super()._wait_for_scores(scored)


SIDES: dict[str, tuple[Any, Any]] = {
    "cross entropy": (CaptionTrainer, CaptionTrainingArguments),
    "self-critical": (TimedTrainer, partial(ScstTrainingArguments, num_generations=SAMPLES)),
}


def run_turn(
    side: str, folder: str, options: argparse.Namespace, device: torch.device, scoring: list[tuple[float, float]]
) -> list[float]:
    """Measure the seconds of the timed steps of a side."""
    torch.manual_seed(0)
    config = SIZES[options.size].config()
    model = BlipForCaptioning(config).use_sdpa()
    times = StepTimes(device)
    steps = 1 + options.steps
    trainer_class, arguments_class = SIDES[side]
    trainer = trainer_class(
        model,
        arguments_class(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=options.images,
            generation_max_length=options.max_length,
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1000,
            dataloader_num_workers=0,
            disable_tqdm=True,
        ),
        MadeRows(options.images * steps),
        processing_class=made_processor(),
        data_collator=default_data_collator,
        callbacks=[times],
    )
    trainer._prepare_inputs = lambda inputs: {name: each.to(device) for name, each in inputs.items()}
    trainer.times = scoring
    trainer.train()
    return times.seconds[1:]


class MadeRows(CaptionDataset):
    """Synthetic pictures with five captions each, in the layout of the collator."""

    def __init__(self, images: int) -> None:
        self.captions = made_captions(images)
        self.pictures = made_images(2)
        texts = [[" ".join(f"w{token}" for token in ids[1:-1].tolist()) for ids in each] for each in self.captions]
        self.rows = Dataset.from_dict({"captions": texts})

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids = torch.cat(self.captions[row])
        positions = torch.cat([torch.arange(len(each)) for each in self.captions[row]])
        return {
            "row": torch.tensor(row),
            "pixel_values": self.pictures[row % 2],
            "input_ids": ids,
            "position_ids": positions,
            "labels": ids.masked_fill(positions == 0, IGNORED),
        }

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: all epochs are equal."""


if __name__ == "__main__":
    run_command(main)
