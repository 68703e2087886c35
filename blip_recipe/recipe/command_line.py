"""Define the options of the commands that use a finished model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from io import TextIOWrapper
from typing import Any

from blip_recipe.errors import RecipeError
from blip_recipe.models.decoding import COUNTS_PROMPT
from blip_recipe.runtime.record import is_exported


def positive(text: str) -> int:
    """Parse an integer of at least 1, for `argparse`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def not_negative(text: str) -> int:
    """Parse an integer of at least 0, for `argparse`."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def above_zero(text: str) -> float:
    """Parse a number above 0, for `argparse`."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def share(text: str) -> float:
    """Parse a number above 0 and at most 1, for `argparse`."""
    number = above_zero(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text} is above 1")
    return number


def early_stopping(text: str) -> bool | str:
    """Parse `true`, `false` or `never`, for `argparse`."""
    values: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not true, false or never")
    return values[text.lower()]


def escape_output() -> None:
    """Escape characters that standard output cannot encode, instead of failing."""
    if isinstance(sys.stdout, TextIOWrapper):  # not so in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for loading a model."""
    add = parser.add_argument
    add("--device", help="such as cpu or cuda:1; default: the first accelerator, else the CPU")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision; default: auto, the precision of the saved weights",
    )
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--allow_pickle", action="store_true", help="also read weights in pickle files; only tensors are unpickled")
    add(
        "--trust_remote_code",
        action="store_true",
        help="run code that comes with the model's configuration; read it first",
    )


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_model_options` as arguments of a pipeline."""
    return {
        name: getattr(arguments, name) for name in ("device", "dtype", "revision", "allow_pickle", "trust_remote_code")
    }


def check_exported(arguments: argparse.Namespace) -> bool:
    """Whether the model is an exported folder; then check that no option of `add_model_options` is given in vain.

    Raises:
        RecipeError: One is.
    """
    if not is_exported(arguments.model):
        return False
    usual = {"device": (None, "cpu"), "dtype": ("auto",)}
    for name, value in load_options(arguments).items():
        if value not in usual.get(name, (None, False)):
            raise RecipeError(
                f"--{name} is given, but {arguments.model} is an exported model, which runs as it is on the CPU: leave "
                f"--{name} out, or name the model that was exported."
            )
    return True


SAMPLING: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (
        above_zero,
        "divisor of the logits: below 1, samples are closer to the likeliest caption; default: 1",
    ),
    "top_k": (not_negative, "sample from this many of the likeliest tokens; 0: all; default: 50"),
    "top_p": (share, "sample from the likeliest tokens with this total probability; default: 1"),
    "seed": (not_negative, "seed of the samples, together with the picture; default: 42"),
}
"""Options of sampling: the parser of the value, and its help."""

DECODING: dict[str, tuple[Callable[[str], Any], str]] = {
    "num_beams": (positive, "number of beams; default: as the model was scored"),
    "max_length": (positive, "longest caption in tokens, prompt included; default: as the model was scored"),
    "min_length": (int, "shortest caption in tokens, prompt included; default: as the model was scored"),
    "repetition_penalty": (
        above_zero,
        "penalty for tokens that are already in the caption; 1: none; default: as the model was scored",
    ),
    "no_repeat_ngram_size": (
        not_negative,
        "sequences of this many tokens may occur only once; 0: no limit; default: as the model was scored",
    ),
    "length_penalty": (
        float,
        "above 1, beam search prefers longer captions; below, shorter ones; default: as the model was scored",
    ),
    "early_stopping": (
        early_stopping,
        "when beam search ends. true: when there are as many complete captions as beams; never: when no other caption "
        "can be better; false: when no other is likely to be better; default: as the model was scored",
    ),
}
"""Options of decoding: the parser of the value, and its help."""


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `DECODING` and `SAMPLING`, for captions."""
    group = parser.add_argument_group("decoding")
    _add_options(group, DECODING)
    group.add_argument(
        f"--{COUNTS_PROMPT}",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="count the prompt in the length by which the score of a beam is divided, as the original does; default: "
        "as the model was scored",
    )
    group.add_argument(
        "--do_sample", action="store_true", help="sample captions instead of searching for the likeliest"
    )
    _add_options(group, SAMPLING)


def add_answer_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `DECODING`, for answers."""
    options = {
        name: (parse, text.replace("caption", "answer").replace("prompt", "start token"))
        for name, (parse, text) in DECODING.items()
    }
    _add_options(parser.add_argument_group("decoding"), options)


def _add_options(group: Any, options: Mapping[str, tuple[Callable[[str], Any], str]]) -> None:
    for name, (parse, text) in options.items():
        group.add_argument(f"--{name}", type=parse, metavar="N", help=text)


def decoding_options(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The decoding options that were given; the model's own apply for the others."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def check_options(
    arguments: argparse.Namespace, needed: Mapping[str, str], contradicting: Iterable[tuple[str, str]]
) -> None:
    """Check that every option has an effect.

    Args:
        arguments: The parsed command line.
        needed: For an option, the one without which it has no effect.
        contradicting: Pairs of options of which only one may be given.

    Raises:
        RecipeError: An option has no effect, or two contradict each other.
    """
    given = {name for name, value in vars(arguments).items() if value is not None and value is not False}
    for option, other in needed.items():
        if option in given and other not in given:
            raise RecipeError(f"--{option} has an effect only with --{other}: add --{other}, or leave --{option} out.")
    for option, other in contradicting:
        if option in given and other in given:
            raise RecipeError(f"--{option} and --{other} contradict each other: give only one of them.")
