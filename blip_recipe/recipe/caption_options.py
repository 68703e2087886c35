"""The options of the caption command, and what they mean for the parts that do the work."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from blip_recipe.captioning.output import COLUMNS, LineFormat
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.errors import RecipeError
from blip_recipe.models.decoding import COUNTS_PROMPT, ONLY_BEAMS
from blip_recipe.recipe.command_line import (
    DECODING,
    SAMPLING,
    add_decoding_options,
    add_model_options,
    check_options,
    decoding_options,
    positive,
)

PROG = "python -m blip_recipe.caption"

SEED = 42
"""The default seed of sampled captions."""

NEEDED = {
    **dict.fromkeys(("append", "overwrite_sidecars"), "sidecar"),
    "separator": "append",
    **dict.fromkeys(SAMPLING, "do_sample"),
    **dict.fromkeys(
        ("dataset_config_name", "dataset_revision", "split", "image_column", "image_root", "caption_column_name"),
        "dataset_name",
    ),
    **dict.fromkeys(("overwrite_column", "shard_rows", "push_to_hub"), "dataset_name"),
    "private": "push_to_hub",
}
"""For an option, the one without which it has no effect."""

CONTRADICTING = (
    ("append", "overwrite_sidecars"),
    *(("do_sample", name) for name in ONLY_BEAMS),
    ("dataset_name", "sidecar"),
    ("dataset_name", "format"),
)
"""Pairs of options that contradict each other."""


MAY_CHANGE = (
    *("paths", "output", "batch_size", "device", "allow_pickle", "trust_remote_code", "push_to_hub", "private"),
    *("format", "sidecar", "overwrite_sidecars", "append", "separator"),
)
"""Options that may change when the captioning of a data set is resumed, because they change no caption."""

CARD_OPTIONS = (
    *("revision", "prompt", "prefix", "suffix", "num_captions", "scores", "match", "do_sample"),
    *DECODING,
    COUNTS_PROMPT,
    *SAMPLING,
)
"""Options that the card of a captioned data set names."""


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} MODEL (PATH... | --dataset_name D) [options]",
        description="Caption pictures, and write a JSON line (or CSV row) per picture, with its caption or its error. "
        "Or caption a data set, and write parquet files with its columns and a new column.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of a captioner, full or LoRA")
    add(
        "paths",
        metavar="PATH",
        nargs="*",
        help="file, folder (all pictures below it), glob, URL, or - for names on stdin",
    )
    add(
        "--output",
        type=Path,
        help="append to this file, and skip the pictures that have a caption in it; default: standard output. With "
        "--dataset_name, the directory of the new data set",
    )
    add("--format", choices=("jsonl", "csv"), help="default: csv for an --output that ends in .csv, else jsonl")
    add(
        "--sidecar",
        action="store_true",
        help="also write each caption to a .txt file beside its picture; without --output, skip pictures that have one",
    )
    add("--overwrite_sidecars", action="store_true", help="replace .txt files that exist")
    add("--append", action="store_true", help="append the caption to .txt files that exist, unless it is there already")
    add("--separator", metavar="TEXT", help="text between an existing text and the caption; default: ', '")
    add("--prefix", metavar="TEXT", default="", help="text before each caption, such as 'ohwx cat, '")
    add("--suffix", metavar="TEXT", default="", help="text after each caption")
    add("--batch_size", type=positive, default=16, help="pictures in a batch (default 16)")
    add(
        "--prompt",
        help="words that captions start with; default: the model's own, which captions do not show",
    )
    add("--num_captions", type=positive, default=1, metavar="N", help="captions of each picture (default 1)")
    add("--scores", action="store_true", help="also write the mean log-probability per token of each caption")
    add(
        "--match",
        metavar="MODEL",
        help="directory or Hub id of a matcher; it scores the captions, and the best one comes first",
    )
    add_decoding_options(parser)
    add_dataset_options(parser)
    add_model_options(parser)
    return parser


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for captioning a data set."""
    add = parser.add_argument_group("captioning a data set").add_argument
    add("--dataset_name", metavar="D", help="Hub id or directory of a data set to caption")
    add("--dataset_config_name", metavar="C", help="configuration of the data set")
    add("--dataset_revision", metavar="R", help="branch, tag or commit of the data set")
    add("--split", metavar="S", help="split to caption; default: train")
    add("--image_column", metavar="I", help="column of pictures; default: one with a known name")
    add("--image_root", metavar="DIR", help="directory that relative image paths start at")
    add("--caption_column_name", metavar="NAME", help="name of the new column; default: caption")
    add("--overwrite_column", action="store_true", help="replace an existing column of this name")
    add("--shard_rows", type=positive, metavar="N", help="rows per parquet file; default: 1000")
    add("--push_to_hub", metavar="ORG/NAME", help="also upload the new data set to the Hub")
    add("--private", action="store_true", help="make the repository private, if it is created now")


def check_caption_options(arguments: argparse.Namespace) -> None:
    """Check that every option has an effect, and that there is one kind of pictures.

    Raises:
        RecipeError: It is not so.
    """
    check_options(arguments, NEEDED, CONTRADICTING)
    if bool(arguments.paths) == bool(arguments.dataset_name):
        raise RecipeError("Give either PATH (files, folders, URLs), or a data set with --dataset_name.")


def line_format(arguments: argparse.Namespace) -> LineFormat:
    """The format of the lines, with the columns that the options add."""
    ends_in_csv = (arguments.output or Path()).suffix.lower() == ".csv"
    row_format = arguments.format or ("csv" if ends_in_csv else "jsonl")
    return LineFormat(row_format, (*COLUMNS, *added_fields(arguments)))


def added_fields(arguments: argparse.Namespace) -> list[str]:
    """The fields that the options add to a caption (`writing.CaptionWriter.write`)."""
    values = [*(["score"] if arguments.scores else []), *(["match"] if arguments.match else [])]
    several = {"score": "scores", "match": "matches"}
    return values + (["captions", *(several[name] for name in values)] if arguments.num_captions > 1 else [])


def generate_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The prompt and decoding of the command line, as arguments of the pipeline."""
    decoding = decoding_options(arguments, ("prompt", *DECODING, COUNTS_PROMPT))
    if arguments.do_sample:
        decoding |= {"do_sample": True, "seed": SEED} | decoding_options(arguments, SAMPLING)
    if arguments.num_captions > 1:
        decoding["num_return_sequences"] = arguments.num_captions
    return decoding


def data_arguments(arguments: argparse.Namespace) -> CaptionDataArguments:
    """The options that name the data set, as data keys."""
    return CaptionDataArguments(
        dataset_name=arguments.dataset_name,
        dataset_config_name=arguments.dataset_config_name,
        dataset_revision=arguments.dataset_revision,
        train_split=arguments.split or "train",
        image_column=arguments.image_column,
        image_root=arguments.image_root,
    )


def card_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that the card of a captioned data set names."""
    return {name: value for name, value in decoding_options(arguments, CARD_OPTIONS).items() if value}


def run_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that a resumed run must share with the earlier one."""
    return {name: value for name, value in vars(arguments).items() if name not in MAY_CHANGE}
