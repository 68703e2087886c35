"""Convert weights of BLIP's original code or of LAVIS to a model that transformers loads.

python -m blip_recipe.convert model_base_caption_capfilt_large.pth outputs/captioner
"""

from __future__ import annotations

import argparse
from pathlib import Path

from blip_recipe.data.storage import check_new, write_json
from blip_recipe.errors import run_command
from blip_recipe.recipe.arguments import TASKS
from blip_recipe.recipe.command_line import positive

PROG = "python -m blip_recipe.convert"

KNOWN_TOKENIZER = "Salesforce/blip-image-captioning-base"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Convert the weights, and save model, processor and decoding settings."""
    arguments = build_parser(prog).parse_args(argv)
    source, target = arguments.source, arguments.target
    check_new(target)

    from transformers import BlipImageProcessor, BlipProcessor

    from blip_recipe.models.conversion import (
        build_config,
        build_model,
        examples,
        find_task,
        read_tokenizer,
        read_weights,
    )
    from blip_recipe.models.processors import save_processor
    from blip_recipe.models.stock import count_parameters
    from blip_recipe.vqa.tokens import use_question_token

    weights = read_weights(source)
    task = find_task(weights, arguments.task)
    tokenizer = read_tokenizer(arguments.tokenizer)
    config = build_config(
        weights, task, tokenizer, vision_heads=arguments.vision_heads, text_heads=arguments.text_heads
    )
    model, left_out = build_model(weights, task, config)
    if task == "vqa":
        use_question_token(tokenizer, config.text_config.bos_token_id)
    size = config.vision_config.image_size
    model.save_pretrained(target)
    save_processor(BlipProcessor(BlipImageProcessor(size={"height": size, "width": size}), tokenizer), target)
    write_json(target / "recipe.json", {"task": task, **({"prompt": arguments.prompt} if task == "captioning" else {})})
    print(
        f"{target}: a {type(model).__name__} with {count_parameters(model)[1]:,} parameters, for pictures of {size} x "
        f"{size} pixels."
    )
    if left_out:
        print(f"Left out: {len(left_out)} of {len(weights)} tensors, which it does not have ({examples(left_out)}).")


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert weights of BLIP's original code or of LAVIS to a model that transformers loads.",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help="the .pth file; only its tensors are read")
    add("target", metavar="TARGET", type=Path, help="directory of the model; must not exist yet")
    add("--task", choices=tuple(TASKS), help="task of the model; default: the one that the weights are for")
    add(
        "--tokenizer",
        metavar="PLACE",
        default=KNOWN_TOKENIZER,
        help="directory or Hub id of a tokenizer, or a vocab.txt; default: %(default)s, that of every published BLIP",
    )
    add("--prompt", default="a picture of ", help="words that every caption starts with; default: '%(default)s'")
    add("--vision_heads", type=positive, metavar="N", help="attention heads of the image encoder; default: width / 64")
    add("--text_heads", type=positive, metavar="N", help="attention heads of the text networks; default: width / 64")
    return parser


if __name__ == "__main__":
    run_command(main)
