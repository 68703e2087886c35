"""Define the options of the commands that use a finished model."""

from __future__ import annotations

import argparse
import sys
from io import TextIOWrapper
from typing import Any


def positive(text: str) -> int:
    """Parse an integer of at least 1, for `argparse`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


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
        help="precision; default: auto, as the weights were saved",
    )
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--allow_pickle", action="store_true", help="also read weights in pickle files; only tensors are unpickled")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model's configuration")


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_model_options` as arguments of a pipeline."""
    return {
        name: getattr(arguments, name) for name in ("device", "dtype", "revision", "allow_pickle", "trust_remote_code")
    }


def decoding_options(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The decoding options that were given; the model's own apply for the others."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}
