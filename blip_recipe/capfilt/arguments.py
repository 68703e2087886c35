"""The keys of a CapFilt recipe, and the parsing of its command line."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers.hf_argparser import HfArgumentParser

from blip_recipe.data.arguments import SHAPES, CaptionDataArguments
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.file import find_recipe, load_recipe
from blip_recipe.recipe.parser import (
    HelpFormatter,
    RecipeParser,
    list_keys,
    option_names,
    to_arguments,
    unknown_key,
)

# torch is not imported, so that `--help` is fast.

PROG = "python -m blip_recipe.capfilt"

DESCRIPTION = """\
Clean a web data set: a captioner writes captions for its pictures, and a filter keeps the texts, web or synthetic, that
match. Run the same command again to resume; accelerate launch or torchrun spread the shards over processes."""


@dataclass
class CapFiltArguments:
    """Which data are cleaned, by which models, and where the result goes."""

    _argument_group_name = "capfilt"

    captioner_name_or_path: str = field(
        default="Salesforce/blip-image-captioning-large",
        metadata={"aliases": ["--captioner"], "help": "Hub id or directory of the captioner, full or LoRA."},
    )
    captioner_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the captioner."})
    filter_name_or_path: str = field(
        default="Salesforce/blip-itm-base-coco",
        metadata={"aliases": ["--filter"], "help": "Hub id or directory of the matcher that filters the texts."},
    )
    filter_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the filter."})
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub data set id or directory: webdataset tars, parquet, an imagefolder, or tables of URLs."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    split: str = field(
        default="train", metadata={"aliases": ["--train_split"], "help": "Split to clean, or a sum such as 'cc3m+sbu'."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of pictures, paths or URLs."})
    caption_column: list[str] | None = field(default=None, metadata={"help": "Column or columns of the web texts."})
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column that names the image; adjacent rows that share it are one image."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Directory that relative image paths start at."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first N images."})
    on_bad_image: Literal["fail", "skip"] = field(
        default="fail", metadata={"help": "Stop at a picture or shard that cannot be read, or skip it."}
    )
    output_dir: str = field(default="outputs/capfilt", metadata={"help": "Where the result goes."})
    filter_threshold: float = field(
        default=0.5, metadata={"help": "Keep texts whose probability of matching (ITM) is at least this."}
    )
    normalize_captions: bool = field(
        default=True,
        metadata={
            "help": "Clean texts as BLIP's authors do before they are scored; the result has the original texts."
        },
    )
    num_generations: int = field(default=1, metadata={"help": "Synthetic captions per picture; 0: only filter."})
    prompt: str | None = field(
        default=None,
        metadata={"help": "Words that every caption starts with, removed from the result; default: the captioner's."},
    )
    top_p: float = field(
        default=0.9,
        metadata={"help": "Sample from the likeliest tokens with this total probability (arXiv 1904.09751)."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Divisor of the logits: below 1, samples are closer to the likeliest caption."}
    )
    top_k: int = field(default=50, metadata={"help": "Sample from this many of the likeliest tokens; 0: all."})
    repetition_penalty: float = field(
        default=1.1, metadata={"help": "Penalty for tokens that are already in the caption; 1: none."}
    )
    no_repeat_ngram_size: int = field(
        default=0, metadata={"help": "Sequences of this many tokens may occur only once in a caption; 0: no limit."}
    )
    min_length: int = field(default=5, metadata={"help": "Shortest caption in tokens, prompt included."})
    max_length: int = field(default=20, metadata={"help": "Longest caption in tokens, prompt included."})
    seed: int = field(default=42, metadata={"help": "Seed of the sampled captions, together with the picture."})
    batch_size: int = field(default=32, metadata={"help": "Pictures per batch."})
    bf16: bool | None = field(default=None, metadata={"help": "Compute in bfloat16; default: where the GPU has it."})

    def __post_init__(self) -> None:
        for name, (expected, is_right) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not is_right(value):
                raise RecipeError(f"{name} is {value}: expected {expected}.")
        if self.min_length > self.max_length:
            raise RecipeError(
                f"min_length is {self.min_length} and max_length {self.max_length}: the minimum may not be over the "
                "maximum."
            )

    def data_arguments(self) -> CaptionDataArguments:
        """The data keys as those of a streamed training split."""
        return CaptionDataArguments(
            dataset_name=self.dataset_name,
            dataset_config_name=self.dataset_config_name,
            dataset_revision=self.dataset_revision,
            train_split=self.split,
            image_column=self.image_column,
            caption_column=self.caption_column,
            image_id_column=self.image_id_column,
            image_root=self.image_root,
            streaming=True,
            on_bad_image=self.on_bad_image,
        )


RANGES: dict[str, tuple[str, Any]] = {
    "filter_threshold": ("a probability", lambda value: 0 <= value <= 1),
    "num_generations": ("at least 0", lambda value: value >= 0),
    "top_p": ("more than 0 and at most 1", lambda value: 0 < value <= 1),
    "top_k": ("at least 0", lambda value: value >= 0),
    "temperature": ("more than 0", lambda value: 0 < value < float("inf")),
    "repetition_penalty": ("more than 0", lambda value: value > 0),
    "no_repeat_ngram_size": ("at least 0", lambda value: value >= 0),
    "min_length": ("at least 0", lambda value: value >= 0),
    "max_length": ("at least 3 tokens", lambda value: value >= 3),
    "seed": ("at least 0", lambda value: value >= 0),
    "batch_size": ("at least 1", lambda value: value >= 1),
    "max_samples": ("at least 1, or nothing for all", lambda value: value >= 1),
}
"""The range of each key that takes a number: its text in messages, and a test of the value."""

GROUPS: list[Any] = [CapFiltArguments]


def read_arguments(argv: list[str] | None = None, prog: str = PROG) -> CapFiltArguments:
    """Parse the command line: a recipe file and overrides.

    Args:
        argv: The arguments of the command; default: those of the process.
        prog: Name of the command in `--help`.

    Raises:
        RecipeError: A key is unknown, or a value has the wrong type or is impossible.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words or "-h" in words or "--help" in words:
        _print_help(prog)
        raise SystemExit(0 if words else 2)
    if words[0].startswith("-"):
        raise RecipeError(f"The first argument is {words[0]!r}: expected a recipe, such as recipes/capfilt_web.json.")
    file = find_recipe(words[0])
    parser = RecipeParser(GROUPS, prog=prog, add_help=False, allow_abbrev=False)
    names = [each.name for each in dataclasses.fields(CapFiltArguments)]
    given = to_arguments(load_recipe(file), names, list_keys(parser), words[0])
    try:
        arguments, unknown = parser.parse_args_into_dataclasses(
            [f"--output_dir=outputs/{file.stem}", *given, *words[1:]],
            return_remaining_strings=True,
            look_for_args_file=False,
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if unknown:
        key = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        raise unknown_key(key, option_names(parser), "the command line")
    _check_places(arguments)
    return arguments


def _check_places(arguments: CapFiltArguments) -> None:
    """Refuse a missing data set, and an output directory that holds the data or lies in it."""
    if arguments.dataset_name in (None, SHAPES):
        raise RecipeError(f"dataset_name is {arguments.dataset_name!r}: expected a Hub id or a directory.")
    data, output = (Path(str(each)).expanduser().resolve() for each in (arguments.dataset_name, arguments.output_dir))
    if data.is_dir() and (output == data or data in output.parents or output in data.parents):
        raise RecipeError(
            f"output_dir is {arguments.output_dir} and dataset_name {arguments.dataset_name}: one lies in the other, "
            "so that the results would be read as data. Name another output_dir."
        )
    there = next(path for path in (output, *output.parents) if path.exists())
    if not there.is_dir():
        raise RecipeError(f"output_dir is {arguments.output_dir}, but {there} is a file: name another directory.")


def _print_help(prog: str) -> None:
    parser = HfArgumentParser(
        GROUPS,
        prog=prog,
        usage=f"{prog} RECIPE [--key value ...]",
        description=DESCRIPTION,
        formatter_class=HelpFormatter,
    )
    parser.print_help()
