"""Draw which parts of a picture a caption, an answer or a match rests on, word by word.

python -m blip_recipe.explain outputs/shapes_tiny scene.png
python -m blip_recipe.explain outputs/shapes_vqa scene.png "Where is the red circle?" --output answer.png
python -m blip_recipe.explain Salesforce/blip-itm-base-coco dog.jpg "a dog on a beach" --words dog --output dog.npz
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from blip_recipe.errors import run_command
from blip_recipe.recipe.command_line import add_model_options, escape_output, load_options, not_negative

PROG = "python -m blip_recipe.explain"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Load the model, explain the text, write the files, and print a JSON line."""
    escape_output()
    arguments = build_parser(prog).parse_args(argv)

    from blip_recipe.models.gradcam import check_texts
    from blip_recipe.models.heatmaps import find_writer
    from blip_recipe.recipe.finished import load_explainer

    check_texts(arguments.text, arguments.answer)
    for path in arguments.output:
        find_writer(path)
    explain = load_explainer(arguments.model, **load_options(arguments))
    explanation = explain(
        arguments.image, arguments.text, layer=arguments.layer, answer=arguments.answer, over=arguments.over
    )
    if arguments.words:
        explanation = explanation.select(arguments.words)
    for path in arguments.output:
        explanation.save(path)
    print(json.dumps(format_row(arguments, explanation), ensure_ascii=False))


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Draw which parts of a picture the words of a caption, a question or a text depend on: Grad-CAM of "
        "the cross-attention, with a panel for each word.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of any BLIP, full or LoRA")
    add("image", metavar="PICTURE", help="file or URL of a picture")
    add(
        "text",
        metavar="TEXT",
        nargs="?",
        help="a caption (default: the one that the captioner generates), a question, or a text to match",
    )
    add(
        "--output",
        nargs="+",
        default=["explanation.png"],
        metavar="OUT",
        help="files to write: .png draws the maps, .npz and .npy hold them as arrays; default: explanation.png",
    )
    add("--words", nargs="+", metavar="WORD", help='only these words and phrases ("red cross"); default: all words')
    add(
        "--layer",
        type=not_negative,
        metavar="N",
        help="layer of the text network, counted from 0; default: two thirds of the number of layers, 8 of 12",
    )
    add("--answer", help="the answer to explain; default: the one that the question answerer generates")
    add(
        "--over",
        choices=("question", "answer"),
        help="with a question answerer: draw a panel for each word of the question or of the answer; default: question",
    )
    add_model_options(parser)
    return parser


def format_row(arguments: argparse.Namespace, explanation: Any) -> dict[str, Any]:
    """The JSON line of an explanation."""
    row = {"image": arguments.image, "text": explanation.text}
    row |= {} if explanation.answer is None else {"answer": explanation.answer}
    scores = [round(score, 6) for score in explanation.scores.tolist()]
    return row | {
        "words": list(explanation.words),
        "scores": scores,
        "layer": explanation.layer,
        "output": list(arguments.output),
    }


if __name__ == "__main__":
    run_command(main)
