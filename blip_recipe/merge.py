"""Fold a LoRA adapter into a plain model.

python -m blip_recipe.merge outputs/coco_lora outputs/coco_lora_merged
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from blip_recipe.errors import RecipeError, run_command


def main(argv: list[str] | None = None) -> None:
    """Read the command line, merge, save."""
    parser = argparse.ArgumentParser(
        prog="python -m blip_recipe.merge", description="Fold LoRA weights into a plain model."
    )
    parser.add_argument("adapter", metavar="ADAPTER_DIR", help="output directory of a LoRA run, or its Hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory of the merged model; must not exist yet")
    arguments = parser.parse_args(argv)
    if arguments.out.is_file() or (arguments.out.exists() and any(arguments.out.iterdir())):
        raise RecipeError(f"{arguments.out} is not empty: name a directory that does not exist yet.")

    from blip_recipe.adapters import merged_captioner, read_repository_json
    from blip_recipe.processing import save_processor

    model, processor = merged_captioner(arguments.adapter)
    model.save_pretrained(arguments.out)
    save_processor(processor, arguments.out)
    if recipe := read_repository_json(arguments.adapter, "recipe.json"):
        (arguments.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    run_command(main)
