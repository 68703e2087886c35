"""Train, publish, load and use captioners as users do, for `test_warnings.py` to read what appears on stderr.

python tests/quiet_runs.py FOLDER   (with the environment of a loopback Hub that has COCO and the base model)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

FEW_STEPS = (
    *("--max_steps", "2", "--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "1"),
    *("--save_steps", "1", "--per_device_train_batch_size", "2", "--max_eval_samples", "3"),
    *("--dataloader_num_workers", "1", "--push_to_hub", "true"),
)


def main() -> None:
    """Do everything in the folder named on the command line; each step begins with a line on stderr."""
    from coco import write_image_folder

    os.chdir(sys.argv[1])
    write_image_folder(Path("my_folder"))
    for step in (quickstart, library, published_model, quantized_adapter):
        print(f"== {step.__name__}", file=sys.stderr, flush=True)
        step()


def quickstart() -> None:
    """The quickstart recipe."""
    from blip_recipe.finetune import main as finetune

    few_rows = ("--max_train_samples", "8", "--hub_model_id", "lab/tiny")
    finetune([str(Path(__file__).parents[1] / "recipes" / "shapes_tiny.json"), *FEW_STEPS, *few_rows])


def library() -> None:
    """An adapter of a Hub model, trained on a folder of pictures in Python."""
    from datasets import load_dataset
    from peft import LoraConfig

    from blip_recipe import CaptionTrainer, CaptionTrainingArguments

    photos = load_dataset("imagefolder", data_dir="my_folder")
    trainer = CaptionTrainer(
        model="Salesforce/blip-image-captioning-base",
        args=CaptionTrainingArguments("outputs/mine", num_train_epochs=1, prompt="a picture of "),
        train_dataset=photos["train"],
        eval_dataset=photos["validation"],
        peft_config=LoraConfig(r=4),
    )
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub("lab/mine")


def published_model() -> None:
    """What was pushed, loaded in each way and used by each command."""
    from transformers import pipeline

    from blip_recipe import load_captioner

    picture = next(Path("my_folder/test").glob("*.png"))
    data = {"lab/tiny": ("shapes", "--max_eval_samples", "4"), "lab/mine": ("my_folder",)}
    for name, options in data.items():
        load_captioner(name)
        pipeline("image-to-text", model=name)([str(picture)], batch_size=2)  # type: ignore[call-overload]
        run("caption", name, picture)
        scored = ("--eval_split", "test", "--output_dir", f"scored/{name}")
        run("evaluate", "--model", name, "--dataset_name", *options, *scored)
    run("merge", "lab/mine", "outputs/merged")
    run("push", "outputs/merged", "--repo_id", "lab/merged")


def quantized_adapter() -> None:
    """An adapter on an 8-bit base, trained from a recipe, published and loaded."""
    from blip_recipe import load_captioner
    from blip_recipe.finetune import main as finetune

    recipe = str(Path(__file__).parents[1] / "recipes" / "coco_lora_8bit.json")
    finetune([recipe, *FEW_STEPS, "--hub_model_id", "lab/8bit"])
    load_captioner("lab/8bit")


def run(command: str, *arguments: str | Path) -> None:
    """`python -m blip_recipe.COMMAND ARGUMENTS` in this process."""
    from importlib import import_module

    sys.argv = [command, *map(str, arguments)]
    import_module(f"blip_recipe.{command}").main()


if __name__ == "__main__":
    main()
