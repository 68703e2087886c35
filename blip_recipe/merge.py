"""Merge a LoRA adapter into its base model, and carry its model card over.

python -m blip_recipe.merge outputs/coco_lora outputs/coco_lora_merged
"""

from __future__ import annotations

import argparse
from pathlib import Path

from blip_recipe.data.storage import check_new, write_json
from blip_recipe.errors import run_command
from blip_recipe.recipe.arguments import recorded_task

PROG = "python -m blip_recipe.merge"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Merge the adapter, and save the model with its card and recipe."""
    arguments = build_parser(prog).parse_args(argv)
    check_new(arguments.out)

    from blip_recipe.card.merged import merge_card
    from blip_recipe.models.loading import load_merged, read_repository_json
    from blip_recipe.models.processors import save_processor
    from blip_recipe.recipe.tasks import find_task

    adapter, out = arguments.adapter, arguments.out
    recipe = read_repository_json(adapter, "recipe.json")
    trainer = find_task(recorded_task(recipe)).trainer
    model, processor, decoding = load_merged(adapter, trainer.model_class)
    model.save_pretrained(out)
    save_processor(processor, out)
    if recipe:
        # Running this recipe gives the merged model; the next push names its repository.
        write_json(out / "recipe.json", recipe | {"merge_adapter": True, "hub_model_id": None})
    merge_card(adapter, read_repository_json(adapter, "adapter_config.json"), recipe, trainer.task, decoding, out)
    print(arguments.out)


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Merge a LoRA adapter into its base, and save a full model."
    )
    parser.add_argument("adapter", metavar="ADAPTER_DIR", help="output directory of a LoRA run, or its Hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory of the merged model; must not exist yet")
    return parser


if __name__ == "__main__":
    run_command(main)
