"""Compare the scores of two files of predictions for the same pictures.

python -m blip_recipe.compare outputs/mine/baseline_predictions.jsonl outputs/mine/predictions.jsonl
python -m blip_recipe.compare a.jsonl b.jsonl --references captions_val2014.json --metrics bleu cider
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from blip_recipe.errors import run_command
from blip_recipe.metrics.intervals import RESAMPLES, SEED, check_resamples
from blip_recipe.metrics.scores import ScoreTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

CHOICES = ("bleu", "meteor", "rouge_l", "cider", "spice", "exact_match")
"""The metrics that need only texts."""

PROG = "python -m blip_recipe.compare"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Print both scores, their difference and its p-value, and the pictures that differ most."""
    arguments = build_parser(prog).parse_args(argv)
    check_resamples(arguments.resamples, needed=True)

    from blip_recipe.data.storage import write_json
    from blip_recipe.metrics.two_files import compare_files, format_comparison

    comparison = compare_files(
        arguments.first,
        arguments.second,
        references_file=arguments.references,
        metrics=arguments.metrics,
        tokenizer=arguments.score_tokenizer,
        subset=arguments.subset == "true",
        resamples=arguments.resamples,
        seed=arguments.seed,
        shown=arguments.shown,
    )
    if arguments.output:
        write_json(arguments.output, comparison)
    print(json.dumps(comparison, ensure_ascii=False) if arguments.json else format_comparison(comparison))


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("first", type=Path, help="predictions.jsonl of captions, answers or matches; or a file of captions")
    add("second", type=Path, help="the file to compare it with; changes are from the first file to the second")
    add(
        "--references",
        type=Path,
        help="file of reference captions; both files are scored with them, instead of by the scores that they hold",
    )
    add(
        "--metrics",
        nargs="+",
        choices=CHOICES,
        help="metrics of captions; default: those that both files have scores of",
    )
    add(
        "--score_tokenizer",
        choices=get_args(ScoreTokenizer),
        default="ptb",
        help="split captions into words (ptb) or characters (char)",
    )
    add("--subset", choices=("true", "false"), default="false", help="compare only the pictures that both files have")
    add("--resamples", type=int, default=RESAMPLES, help="resamples for intervals and tests, at least 100")
    add("--seed", type=int, default=SEED, help="seed of the resamples")
    add("--shown", type=int, default=5, help="number of pictures to show whose scores rose most, and that fell most")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--output", type=Path, help="write the comparison as JSON into this file")
    return parser


if __name__ == "__main__":
    run_command(main)
