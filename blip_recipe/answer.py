"""Answer questions about a picture with a trained BLIP, a JSON line a question.

python -m blip_recipe.answer outputs/shapes_vqa scene.png "How many red things are there?"
python -m blip_recipe.answer Salesforce/blip-vqa-base photo.jpg "Is it old?" --answers answers.txt --top_k 3
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.command_line import add_model_options, decoding_options, load_options, positive

if TYPE_CHECKING:
    from blip_recipe.vqa.pipeline import VisualQuestionAnsweringPipeline


def main(argv: list[str] | None = None) -> None:
    """Read the list of answers, load, look once, answer."""
    arguments = build_parser().parse_args(argv)
    if arguments.top_k > 1 and arguments.answers is None:
        raise RecipeError("--top_k ranks the answers of a list: name its file with --answers.")
    answers = None if arguments.answers is None else read_answers(arguments.answers)
    pipeline = load_pipeline(arguments, answers)
    for question, found in zip(
        arguments.questions, pipeline.ask(arguments.image, arguments.questions, arguments.top_k), strict=True
    ):
        print(json.dumps(format_row(arguments.image, question, found, ranked=answers is not None), ensure_ascii=False))


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m blip_recipe.answer",
        description="Answer questions about a picture: a JSON line each, with image, question and answer.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of a BLIP that answers, full or LoRA")
    add("image", metavar="IMAGE", help="file or URL of a picture")
    add("questions", metavar="QUESTION", nargs="+", help="what is asked about it")
    add("--answers", type=Path, help="choose among the answers in this file: one a line, or a JSON list")
    add("--top_k", type=positive, default=1, help="so many of the likeliest --answers, with their log likelihoods")
    add("--num_beams", type=positive, help="default: as the model was scored; so the lengths")
    add("--max_length", type=positive, help="longest answer in tokens, with its first, which is no word")
    add("--min_length", type=int, help="shortest answer in tokens")
    add_model_options(parser)
    return parser


def read_answers(file: Path) -> list[str]:
    """The different answers in a file, in their order: a JSON list of texts, or lines that are not empty.

    Raises:
        RecipeError: It cannot be read, or holds none.
    """
    try:
        content = file.read_text(encoding="utf-8-sig")
        found: Any = json.loads(content) if file.suffix.lower() == ".json" else content.splitlines()
    except (OSError, ValueError) as error:
        raise RecipeError(f"--answers {file} cannot be read: {error}.") from error
    if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
        raise RecipeError(f"--answers {file} holds something else: expected a JSON list of texts, or a text a line.")
    answers = list(dict.fromkeys(answer.strip() for answer in found if answer.strip()))
    if not answers:
        raise RecipeError(f"--answers {file} is empty: expected a JSON list of texts, or a text a line.")
    return answers


def load_pipeline(arguments: argparse.Namespace, answers: list[str] | None) -> VisualQuestionAnsweringPipeline:
    """The model that the arguments name, with the decoding that they ask for.

    Raises:
        RecipeError: It cannot be loaded, or its answers would not fit the lengths asked for.
    """
    from blip_recipe.models.pipeline import decoding_arguments
    from blip_recipe.vqa.pipeline import answer_pipeline

    wishes = decoding_options(arguments, ("num_beams", "max_length", "min_length"))
    pipeline = answer_pipeline(
        arguments.model,
        **load_options(arguments),
        answers=answers,
        **wishes,
    )
    lengths = decoding_arguments(pipeline.settings, wishes)
    positions = pipeline.model.config.text_config.max_position_embeddings
    if not max(2, lengths["min_length"]) <= lengths["max_length"] <= positions:
        raise RecipeError(
            f"max_length is {lengths['max_length']} tokens, min_length {lengths['min_length']}: expected max_length of "
            f"at least 2, not below min_length, and at most the model's {positions}. Set --max_length and --min_length."
        )
    return pipeline


def format_row(image: str, question: str, found: list[dict[str, Any]], *, ranked: bool) -> dict[str, Any]:
    """What is printed for a question: its answer and, ranked, its log likelihood and those of the other `top_k`."""
    row = {"image": image, "question": question, **found[0]}
    return row | {"ranked": found} if ranked and len(found) > 1 else row


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    run_command(main)
