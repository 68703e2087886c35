"""Caption files, folders and URLs with a trained BLIP, one line for each picture.

python -m blip_recipe.caption outputs/my_captioner photos/ --output captions.jsonl
find photos -name '*.jpg' | python -m blip_recipe.caption lab/my-captioner - --sidecar
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from blip_recipe.captioning.output import finished_images, open_output, sidecar_path, write_line, write_sidecar
from blip_recipe.data.listing import URL, list_images, printable, read_ahead
from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.command_line import add_model_options, decoding_options, load_options, positive

if TYPE_CHECKING:
    import torch

    from blip_recipe.captioning.pipeline import ImageToTextPipeline


PROG = "python -m blip_recipe.caption"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Caption the pictures in the order of the input; memory holds a few batches."""
    with exit_on_interrupt():
        caption_all(build_parser(prog).parse_args(argv))


def caption_all(arguments: argparse.Namespace) -> None:
    """List, read and caption the pictures, and write a line for each."""
    if "-" in arguments.paths:
        # A file name need not be UTF-8, and may hold a carriage return.
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    row_format = arguments.format or ("csv" if (arguments.output or Path()).suffix.lower() == ".csv" else "jsonl")
    done = finished_images(arguments.output, row_format) if arguments.output else set()
    if done:
        print(f"Pictures already in {arguments.output}: {len(done):,}. Their lines stay as they are.", file=sys.stderr)
    total = None if "-" in arguments.paths else sum(1 for _ in images_to_caption(arguments, set(done)))
    if total == 0:
        print("There is nothing to caption: there are no pictures, or all of them have captions.", file=sys.stderr)
        return

    from tqdm import tqdm

    pipeline = load_pipeline(arguments)
    rows = caption_images(pipeline, images_to_caption(arguments, done), arguments.batch_size)
    with open_output(arguments.output, row_format) as output, tqdm(total=total, unit="image", mininterval=1) as bar:
        for row in rows:
            if "error" in row:
                bar.write(printable(f"not captioned: {row['error']}"), file=sys.stderr)
            elif arguments.sidecar and (
                reason := write_sidecar(row["image"], row["caption"], arguments.overwrite_sidecars)
            ):
                bar.write(printable(f"no .txt for {row['image']}: {reason}"), file=sys.stderr)
            write_line(output, row, row_format)
            bar.update()


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Caption pictures: one JSON line (or CSV row) for each, with its caption or its error.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of a BLIP captioner, full or LoRA")
    add(
        "paths",
        metavar="PATH",
        nargs="+",
        help="file, folder (all pictures below it), glob, URL, or - for names on stdin",
    )
    add(
        "--output",
        type=Path,
        help="append to this file, and skip the pictures that have a line in it; default: standard output",
    )
    add("--format", choices=("jsonl", "csv"), help="default: csv for an --output that ends in .csv, else jsonl")
    add(
        "--sidecar",
        action="store_true",
        help="also write each caption to a .txt file beside its picture; without --output, skip pictures that have one",
    )
    add("--overwrite_sidecars", action="store_true", help="replace .txt files that exist")
    add("--batch_size", type=positive, default=8, help="pictures in a batch (default 8)")
    add(
        "--prompt", help="words every caption starts with; default: the model's own, which are left out of its captions"
    )
    add("--num_beams", type=positive, help="number of beams; default: as evaluated")
    add(
        "--max_length",
        type=positive,
        help="longest caption in tokens, prompt included; default: as evaluated",
    )
    add(
        "--min_length",
        type=int,
        help="shortest caption in tokens, prompt included; default: as evaluated",
    )
    add_model_options(parser)
    return parser


def images_to_caption(arguments: argparse.Namespace, done: set[str]) -> Iterator[str]:
    """Names of the pictures without a line in `--output`, or without a sidecar if only sidecars are asked for."""
    keep_sidecars = arguments.sidecar and not arguments.overwrite_sidecars
    for name in list_images(arguments.paths, sys.stdin):
        if arguments.output:
            if name not in done:
                done.add(name)
                yield name
        elif not (keep_sidecars and os.path.exists(sidecar_path(name))):  # noqa: PTH110 - pathlib raises for some names
            yield name


def load_pipeline(arguments: argparse.Namespace) -> ImageToTextPipeline:
    """Load the captioner with the decoding options of the command line.

    Raises:
        RecipeError: It cannot be loaded, or the lengths do not fit the model or its prompt.
    """
    from blip_recipe.captioning.pipeline import caption_pipeline
    from blip_recipe.models.pipeline import decoding_arguments

    decoding = decoding_options(arguments, ("prompt", "num_beams", "max_length", "min_length"))
    pipeline = caption_pipeline(
        arguments.model,
        **load_options(arguments),
        **decoding,
    )
    prompt = decoding.pop("prompt", pipeline.settings.prompt)
    lengths = decoding_arguments(pipeline.settings, decoding)
    prompt_length = len(pipeline.tokenizer(prompt).input_ids) - 1  # without the end token
    positions = pipeline.model.config.text_config.max_position_embeddings
    if not max(prompt_length + 1, lengths["min_length"]) <= lengths["max_length"] <= positions:
        raise RecipeError(
            f"max_length is {lengths['max_length']} tokens, min_length {lengths['min_length']}: expected max_length "
            f"above the prompt's {prompt_length} tokens, not below min_length, and at most the model's {positions}. "
            "Set --max_length and --min_length."
        )
    return pipeline


def caption_images(pipeline: ImageToTextPipeline, names: Iterable[str], batch_size: int) -> Iterator[dict[str, str]]:
    """A row `{"image", "caption"}` or `{"image", "error"}` for each of `names`, in order.

    Pictures are opened while others are captioned; memory holds at most three batches.
    """
    import torch

    def read(name: str) -> torch.Tensor | Exception:
        try:
            if not URL.match(name) and os.path.exists(name) and not os.path.isfile(name):  # noqa: PTH110, PTH113
                raise RecipeError("it is neither a file nor a folder that can be listed")  # a pipe would never end
            return pipeline.preprocess(name)["pixel_values"]
        except Exception as error:  # a file may hold anything: the error becomes its line
            return error

    opened = read_ahead(read, names, ahead=2 * batch_size)
    while batch := list(islice(opened, batch_size)):
        readable = [pixels for _, pixels in batch if not isinstance(pixels, Exception)]
        captions = iter(pipeline.caption_pixels(torch.cat(readable)) if readable else ())
        for name, pixels in batch:
            if isinstance(pixels, Exception):
                error = str(pixels) or type(pixels).__name__
                yield {"image": name, "error": error if name in error else f"{name}: {error}"}
            else:
                yield {"image": name, "caption": next(captions)}


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit at once on Ctrl+C: the written lines are complete, and threads may wait a long time for a server."""

    def exit_now(*_: object) -> None:
        os.write(sys.stderr.fileno(), b"\nerror: interrupted; with --output, run the same command again to resume\n")
        os._exit(130)

    is_main = threading.current_thread() is threading.main_thread()  # others may not change handlers
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, exit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    run_command(main)
