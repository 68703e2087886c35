"""Answer questions about a picture with a trained BLIP, one JSON line for each question.

python -m blip_recipe.answer outputs/shapes_vqa scene.png "How many red things are there?"
python -m blip_recipe.answer Salesforce/blip-vqa-base photo.jpg "Is it old?" --answers answers.txt --top_k 3
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.errors import RecipeError, run_command
from blip_recipe.models.decoding import check_answer_decoding
from blip_recipe.recipe.command_line import (
    DECODING,
    add_answer_decoding_options,
    add_model_options,
    check_exported,
    check_options,
    decoding_options,
    escape_output,
    load_options,
    positive,
)
from blip_recipe.vqa.answer_lists import RANK_BY, RANKED_ANSWERS, SMOOTHING, read_answer_list

if TYPE_CHECKING:
    from blip_recipe.runtime.answerer import ExportedAnswerer
    from blip_recipe.vqa.pipeline import VisualQuestionAnsweringPipeline


PROG = "python -m blip_recipe.answer"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Answer the questions; the picture is encoded once."""
    escape_output()
    arguments = build_parser(prog).parse_args(argv)
    for option in ("top_k", "rank_top_k", "rank_by"):
        if getattr(arguments, option) is not None and arguments.answers is None:
            raise RecipeError(f"--{option} ranks the answers of a list: name its file with --answers.")
    # A ranked answer is not generated.
    check_options(arguments, {}, [("answers", name) for name in DECODING])
    answers = None if arguments.answers is None else read_answer_list(arguments.answers, "--answers")
    pipeline = load_pipeline(arguments, answers)
    for question, found in zip(
        arguments.questions, pipeline.ask(arguments.image, arguments.questions, arguments.top_k or 1), strict=True
    ):
        print(json.dumps(format_row(arguments.image, question, found, ranked=answers is not None), ensure_ascii=False))


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Answer questions about a picture. Print a JSON line per question: image, question and answer.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of a question answerer, full or LoRA")
    add("image", metavar="IMAGE", help="file or URL of a picture")
    add("questions", metavar="QUESTION", nargs="+", help="question about the picture")
    add("--answers", type=Path, help="choose among the answers in this file: one per line, or a JSON list")
    add(
        "--top_k",
        type=positive,
        help="print this many of the best --answers, with their losses and log likelihoods; default: 1",
    )
    add(
        "--rank_top_k",
        type=positive,
        help=f"compare only this many of --answers in full, those with the most probable first token; default: "
        f"{RANKED_ANSWERS}",
    )
    add(
        "--rank_by",
        choices=RANK_BY,
        help="rank --answers by BLIP's loss with label smoothing (default), or by likelihood",
    )
    add_answer_decoding_options(parser)
    add_model_options(parser)
    return parser


def load_pipeline(
    arguments: argparse.Namespace, answers: list[str] | None
) -> VisualQuestionAnsweringPipeline | ExportedAnswerer:
    """Load the model with the decoding options of the command line.

    Raises:
        RecipeError: It cannot be loaded, or the lengths do not fit it.
    """
    decoding = decoding_options(arguments, DECODING)
    if check_exported(arguments):
        from blip_recipe.runtime.answerer import ExportedAnswerer

        answerer = ExportedAnswerer.load(
            arguments.model,
            answers=answers,
            rank_top_k=arguments.rank_top_k or RANKED_ANSWERS,
            label_smoothing=SMOOTHING[arguments.rank_by or RANK_BY[0]],
            **decoding,
        )
        check_answer_decoding(answerer.folder.settings, decoding, answerer.folder.record["positions"])
        return answerer

    from blip_recipe.vqa.pipeline import answer_pipeline

    pipeline = answer_pipeline(
        arguments.model,
        **load_options(arguments),
        answers=answers,
        rank_top_k=arguments.rank_top_k,
        rank_by=arguments.rank_by,
        **decoding,
    )
    check_answer_decoding(pipeline.settings, decoding, pipeline.model.config.text_config.max_position_embeddings)
    return pipeline


def format_row(image: str, question: str, found: list[dict[str, Any]], *, ranked: bool) -> dict[str, Any]:
    """The JSON line of a question: its answer and, if ranked, the `top_k` answers with losses and log likelihoods."""
    row = {"image": image, "question": question, **found[0]}
    return row | {"ranked": found} if ranked and len(found) > 1 else row


if __name__ == "__main__":
    run_command(main)
