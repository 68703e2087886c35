"""Caption files, folders and URLs with a trained BLIP, one line a picture.

python -m blip_recipe.caption outputs/my_captioner photos/ --output captions.jsonl
find photos -name '*.jpg' | python -m blip_recipe.caption lab/my-captioner - --sidecar
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from blip_recipe.captioning.output import finished_images, open_output, sidecar_of, write_line, write_sidecar
from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.command_line import add_model_options, positive

if TYPE_CHECKING:
    import torch

    from blip_recipe.captioning.pipeline import ImageToTextPipeline

IMAGE_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
URL = re.compile("https?://", re.IGNORECASE)
READERS = 4
"""Threads that open pictures: decoding holds no lock, and more of them would hold more large pictures at once."""

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def list_images(paths: Iterable[str], stdin: IO[str]) -> Iterator[str]:
    """File names and URLs that `paths` stand for, in order; names that are no file are kept, to be reported."""
    for path in paths:
        if path == "-":
            yield from list_images((line.rstrip("\r\n") for line in stdin if line.strip() not in ("", "-")), stdin)
        elif URL.match(path) or os.path.isfile(path):  # noqa: PTH113 - pathlib raises for some names
            yield path
        elif os.path.isdir(path):  # noqa: PTH112
            yield from list_folder(path)
        else:
            # A file of that very name would have been taken above: a name is never a pattern when the file exists.
            yield from list(_list_glob(path)) or [path]


def list_folder(folder: str) -> Iterator[str]:
    """Pictures below `folder` by extension, in the order of their names; hidden files and folders are left out.

    A folder that cannot be listed is given itself, to be reported. Of a folder's files, only names are held.
    """
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - a Path for each would be held with it
    except OSError:
        yield folder
        return
    for name in names:
        path = Path(folder, name)
        if name.startswith("."):
            continue
        if path.is_dir():
            if not path.is_symlink():  # a link may lead back here
                yield from list_folder(str(path))
        elif path.suffix.lower() in IMAGE_EXTENSIONS:
            yield str(path)


def _list_glob(pattern: str) -> Iterator[str]:
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - only glob takes absolute patterns
        if Path(match).suffix.lower() in IMAGE_EXTENSIONS and Path(match).is_file():
            yield match


def images_to_caption(arguments: argparse.Namespace, done: set[str]) -> Iterator[str]:
    """Names of the pictures that have no line in `--output`, or no sidecar where that is the only file asked for."""
    keep_sidecars = arguments.sidecar and not arguments.overwrite_sidecars
    for name in list_images(arguments.paths, sys.stdin):
        if arguments.output:
            if name not in done:
                done.add(name)
                yield name
        elif not (keep_sidecars and os.path.exists(sidecar_of(name))):  # noqa: PTH110 - pathlib raises for some names
            yield name


def load_pipeline(arguments: argparse.Namespace) -> ImageToTextPipeline:
    """The captioner that the arguments name, with the decoding that they ask for.

    Raises:
        RecipeError: It cannot be loaded, or its captions would not fit the lengths asked for.
    """
    from blip_recipe.captioning.pipeline import caption_pipeline, decoding_arguments

    wishes = {key: getattr(arguments, key) for key in ("prompt", "num_beams", "max_length", "min_length")}
    wishes = {key: wish for key, wish in wishes.items() if wish is not None}
    pipeline = caption_pipeline(
        arguments.model,
        revision=arguments.revision,
        device=arguments.device,
        dtype=arguments.dtype,
        allow_pickle=arguments.allow_pickle,
        trust_remote_code=arguments.trust_remote_code,
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


def read_ahead(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[tuple[Item, Result]]:
    """`(item, function(item))` in order, while threads work on the next `ahead` items; takes `items` as it goes."""
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > ahead:
                first, result = pending.popleft()
                yield first, result.result()
        for first, result in pending:
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


def printable(text: str) -> str:
    """`text` on one line and without what a terminal would obey: a file name may hold anything."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def end_at_once(*_: object) -> None:
    """End an interrupted run as a kill would: written lines are whole, and threads may wait for a server for long."""
    os.write(sys.stderr.fileno(), b"\nerror: interrupted; with --output, the same command goes on\n")
    os._exit(130)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, end_at_once)
    run_command(main)
