"""Measure the time from the command line to the end of the first step, compared with a plain transformers script.

python -m benchmarks.startup

Both train the same tiny model on pictures in memory. Our command also checks the recipe and every picture, plans the
memory, and claims the output directory. It does not score the base model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS, machine, write_results
from blip_recipe.errors import run_command

IMAGES = 32
STOCK_SCRIPT = """
import sys
import torch
from transformers import BlipForConditionalGeneration, BlipProcessor, Seq2SeqTrainer, Seq2SeqTrainingArguments
from PIL import Image

model = BlipForConditionalGeneration.from_pretrained(sys.argv[1])
processor = BlipProcessor.from_pretrained(sys.argv[1])
rows = [{"image": Image.new("RGB", (96, 96), (number, 0, 0)), "caption": "a red circle"} for number in range(32)]

def collate(rows):
    batch = processor(images=[row["image"] for row in rows], text=[row["caption"] for row in rows], padding=True,
                      return_tensors="pt")
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch

arguments = Seq2SeqTrainingArguments(sys.argv[2], max_steps=1, per_device_train_batch_size=32, report_to=[],
                                     save_strategy="no", remove_unused_columns=False, use_cpu=True, disable_tqdm=False)
Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
"""


def main() -> None:
    """Take turns, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "startup_cpu.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_model(folder)
        stock = [sys.executable, "-c", STOCK_SCRIPT, folder, f"{folder}/stock"]
        keys = {
            "output_dir": f"{folder}/ours",
            "overwrite_output_dir": "true",
            "max_train_samples": IMAGES,
            "per_device_train_batch_size": IMAGES,
            "max_steps": 1,
            "eval_strategy": "no",
            "load_best_model_at_end": "false",
            "test_split": "null",
            "eval_split": "null",
            "dataloader_num_workers": 0,
            "use_cpu": "true",
        }
        recipe = Path(folder, "recipe.json")
        recipe.write_text('{"model_name_or_path": "tiny", "dataset_name": "shapes"}', encoding="utf-8")
        given = [f"--{key}={value}" for key, value in keys.items() if value != "null"]
        ours = [sys.executable, "-m", "blip_recipe.finetune", str(recipe), *given]
        seconds: dict[str, list[float]] = {"help": [], "stock": [], "ours": []}
        for _ in range(options.turns):
            seconds["help"].append(
                seconds_until_output([sys.executable, "-m", "blip_recipe.finetune", "--help"], "usage")
            )
            seconds["stock"].append(seconds_until_output(stock, "1/1"))
            seconds["ours"].append(seconds_until_output(ours, "1/1"))
    median = {name: statistics.median(each) for name, each in seconds.items()}
    row = {f"{name}: seconds": round(each, 2) for name, each in median.items()}
    rows = [row | {"ours / stock": round(median["ours"] / median["stock"], 2)}]
    write_results(options.output, machine(["torch", "transformers"]), rows)


def save_tiny_model(folder: str) -> None:
    """Save the embedded model for the script."""
    from blip_recipe.captioning.tiny import build_tiny_captioner
    from blip_recipe.models.processors import save_processor

    model, processor = build_tiny_captioner(["a red circle"])
    model.save_pretrained(folder)
    save_processor(processor, Path(folder))


def seconds_until_output(command: list[str], word: str) -> float:
    """Seconds from the start of a command until its output has `word`. The command then runs to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ)
    output, when = b"", 0.0
    stream = process.stdout
    assert stream is not None
    while piece := os.read(stream.fileno(), 4096):
        output += piece
        if not when and word.encode() in output:
            when = time.perf_counter() - began
    if process.wait() or not when:
        raise RuntimeError(f"{command[:4]} ended with {process.returncode}:\n{output.decode()[-2000:]}")
    return when


if __name__ == "__main__":
    run_command(main)
