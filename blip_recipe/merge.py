"""Fold a LoRA adapter into a plain model, with a card that carries over what the adapter's says.

python -m blip_recipe.merge outputs/coco_lora outputs/coco_lora_merged
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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

    from blip_recipe.card.merged import carry_card
    from blip_recipe.card.rendering import DecodingFacts
    from blip_recipe.data.storage import write_json
    from blip_recipe.models.loading import CaptionSettings, merged_model, read_repository_json
    from blip_recipe.models.processors import save_processor
    from blip_recipe.training.task import find_task, recorded_task

    adapter, out = arguments.adapter, arguments.out
    recipe = read_repository_json(adapter, "recipe.json")
    model, processor = merged_model(adapter, find_task(recorded_task(recipe)).model_class)
    model.save_pretrained(out)
    save_processor(processor, out)
    if recipe:
        # Run again, it gives a merged model; where that is published is for the next push to say.
        write_json(out / "recipe.json", recipe | {"merge_adapter": True, "hub_model_id": None})
    generation: Any = model.generation_config if model.can_generate() else CaptionSettings()
    decoding = DecodingFacts(
        recipe.get("prompt", ""), generation.num_beams, generation.max_length, generation.min_length
    )
    carry_card(adapter, read_repository_json(adapter, "adapter_config.json"), recipe, decoding, out)
    print(arguments.out)


if __name__ == "__main__":
    run_command(main)
