"""Caption files, folders and URLs with a trained BLIP, one line a picture.

python -m blip_recipe.caption outputs/my_captioner photos/ --output captions.jsonl
find photos -name '*.jpg' | python -m blip_recipe.caption lab/my-captioner - --sidecar
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Iterator
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


def main() -> None:
    """List, read, caption, write: in the order of the input and with the memory of a few batches."""
    arguments = build_parser().parse_args()
    if "-" in arguments.paths:
        # A file name need not be UTF-8, and may hold a carriage return.
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    row_format = arguments.format or ("csv" if (arguments.output or Path()).suffix.lower() == ".csv" else "jsonl")
    done = finished_images(arguments.output, row_format) if arguments.output else set()
    if done:
        print(f"{arguments.output} has {len(done):,} pictures already, which stay as they are.", file=sys.stderr)
    total = None if "-" in arguments.paths else sum(1 for _ in images_to_caption(arguments, set(done)))
    if total == 0:
        print("There is nothing to caption: no pictures, or all of them have their captions.", file=sys.stderr)
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


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m blip_recipe.caption",
        description="Caption pictures: a JSON line (or CSV row) each, with its caption or what is wrong with it.",
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
        help="append to this file; a picture that it has a line for, of whichever model, is skipped; default stdout",
    )
    add("--format", choices=("jsonl", "csv"), help="default: csv for an --output that ends in .csv, else jsonl")
    add(
        "--sidecar",
        action="store_true",
        help="also write each caption to a .txt beside its file; without --output, files that have one are skipped",
    )
    add("--overwrite_sidecars", action="store_true", help="replace a .txt that is there, instead of keeping it")
    add("--batch_size", type=positive, default=8, help="pictures a step (default 8)")
    add("--prompt", help="words every caption starts with; default the model's own, which are left out of its captions")
    add("--num_beams", type=positive, help="default: as the model was scored; so the lengths")
    add("--max_length", type=positive, help="longest caption in tokens, prompt included")
    add("--min_length", type=int, help="shortest caption in tokens, prompt included")
    add_model_options(parser)
    return parser


def images_to_caption(arguments: argparse.Namespace, done: set[str]) -> Iterator[str]:
    """Names of the pictures that have no line in `--output`, or no sidecar where that is the only file asked for."""
    keep_sidecars = arguments.sidecar and not arguments.overwrite_sidecars
    for name in list_images(arguments.paths, sys.stdin):
        if arguments.output:
            if name not in done:
                done.add(name)
                yield name
        elif not (keep_sidecars and os.path.exists(sidecar_path(name))):  # noqa: PTH110 - pathlib raises for some names
            yield name


def load_pipeline(arguments: argparse.Namespace) -> ImageToTextPipeline:
    """The captioner that the arguments name, with the decoding that they ask for.

    Raises:
        RecipeError: It cannot be loaded, or its captions would not fit the lengths asked for.
    """
    from blip_recipe.captioning.pipeline import caption_pipeline
    from blip_recipe.models.pipeline import decoding_arguments

    wishes = decoding_options(arguments, ("prompt", "num_beams", "max_length", "min_length"))
    pipeline = caption_pipeline(
        arguments.model,
        **load_options(arguments),
        **wishes,
    )
    prompt = wishes.pop("prompt", pipeline.settings.prompt)
    lengths = decoding_arguments(pipeline.settings, wishes)
    prompt_length = len(pipeline.tokenizer(prompt).input_ids) - 1  # the end of a text is no part of a prompt
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

    Pictures are opened while others are captioned; three batches of them are held at most.
    """
    import torch

    def read(name: str) -> torch.Tensor | Exception:
        try:
            if not URL.match(name) and os.path.exists(name) and not os.path.isfile(name):  # noqa: PTH110, PTH113
                raise RecipeError("it is no file, and no folder that can be listed")  # a pipe would never end
            return pipeline.preprocess(name)["pixel_values"]
        except Exception as error:  # whatever a file holds, it is its own line and not the end
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


def end_at_once(*_: object) -> None:
    """End an interrupted run as a kill would: written lines are whole, and threads may wait for a server for long."""
    os.write(sys.stderr.fileno(), b"\nerror: interrupted; with --output, the same command resumes\n")
    os._exit(130)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, end_at_once)
    run_command(main)
