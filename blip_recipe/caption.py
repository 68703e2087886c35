"""Caption files, folders and URLs with a trained BLIP, one line a picture.

python -m blip_recipe.caption outputs/my_captioner photos/ --output captions.jsonl
find photos -name '*.jpg' | python -m blip_recipe.caption lab/my-captioner - --sidecar
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import glob
import io
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from blip_recipe.errors import RecipeError, run_command

if TYPE_CHECKING:
    import torch

    from blip_recipe.pipeline import ImageToTextPipeline

IMAGE_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
URL = re.compile("https?://", re.IGNORECASE)
CSV_COLUMNS = ("image", "caption", "error")
READERS = 4
"""Threads that open pictures: decoding holds no lock, and more of them would hold more large pictures at once."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def main() -> None:
    """List, read, caption, write: in the order of the input and with the memory of a few batches."""
    arguments = build_parser().parse_args()
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # a file name need not be UTF-8
    row_format = arguments.format or ("csv" if (arguments.output or Path()).suffix.lower() == ".csv" else "jsonl")
    done = finished_images(arguments.output, row_format) if arguments.output else set()

    from tqdm import tqdm

    pipeline = load_pipeline(arguments)
    total = None if "-" in arguments.paths else sum(1 for _ in images_to_caption(arguments, set(done)))
    rows = caption_images(pipeline, images_to_caption(arguments, done), arguments.batch_size)
    with open_output(arguments.output, row_format) as output, tqdm(total=total, unit="image", mininterval=1) as bar:
        for row in rows:
            if "error" in row:
                bar.write(f"not captioned: {row['error']}", file=sys.stderr)
            elif arguments.sidecar and not write_sidecar(row["image"], row["caption"], arguments.overwrite_sidecars):
                bar.write(f"kept the .txt of {row['image']!r}: --overwrite_sidecars replaces it", file=sys.stderr)
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
    add("--output", type=Path, help="append to this file, and skip the pictures that it has already; default stdout")
    add("--format", choices=("jsonl", "csv"), help="default: csv for an --output that ends in .csv, else jsonl")
    add(
        "--sidecar",
        action="store_true",
        help="also write each caption to a .txt beside its file; without --output, files that have one are skipped",
    )
    add("--overwrite_sidecars", action="store_true", help="replace a .txt that is there, instead of keeping it")
    add("--batch_size", type=int, default=8, help="pictures a step (default 8)")
    add("--prompt", help="words every caption starts with; default the model's own, which are left out of its captions")
    add("--num_beams", type=int, help="default: as the model was scored; so the lengths")
    add("--max_length", type=int, help="longest caption in tokens, prompt included")
    add("--min_length", type=int, help="shortest caption in tokens, prompt included")
    add("--device", help="such as cpu, cuda:1; default the first accelerator, else the CPU")
    add("--dtype", default="auto", help="float32, bfloat16, float16, or auto (default): as saved")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model's configuration")
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
    """Pictures below `folder` by extension, in the order of their names; hidden files and folders are left out."""
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith("."):
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
        elif not (keep_sidecars and sidecar_of(name).exists()):
            yield name


def load_pipeline(arguments: argparse.Namespace) -> ImageToTextPipeline:
    """The captioner that the arguments name, with the decoding that they ask for."""
    from blip_recipe.pipeline import caption_pipeline

    wishes = {key: getattr(arguments, key) for key in ("prompt", "num_beams", "max_length", "min_length")}
    return caption_pipeline(
        arguments.model,
        revision=arguments.revision,
        device=arguments.device,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
        **{key: wish for key, wish in wishes.items() if wish is not None},
    )


def caption_images(pipeline: ImageToTextPipeline, names: Iterable[str], batch_size: int) -> Iterator[dict[str, str]]:
    """A row `{"image", "caption"}` or `{"image", "error"}` for each of `names`, in order.

    Pictures are opened while others are captioned; three batches of them are held at most.
    """
    import torch

    def read(name: str) -> torch.Tensor | Exception:
        try:
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
    with ThreadPoolExecutor(READERS) as pool:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > ahead:
                first, result = pending.popleft()
                yield first, result.result()
        for first, result in pending:
            yield first, result.result()


def finished_images(path: Path, row_format: str) -> set[str]:
    """The pictures that `path` has a line for; a last line that was cut off is removed from the file.

    Raises:
        RecipeError: The file holds something else.
    """
    if not path.exists():
        return set()
    names, size = set(), 0
    with path.open("rb") as file:
        for number, record in enumerate(_complete_records(file, row_format), start=1):
            size += len(record)
            try:
                names.add(_image_of(record, row_format))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise RecipeError(
                    f"--output {path}: line {number} is no {row_format} line of this command. Go on with a file "
                    "that it wrote in the same --format, or name a new one."
                ) from error
    os.truncate(path, size)
    return names - {CSV_COLUMNS[0]} if row_format == "csv" else names


def _complete_records(file: IO[bytes], row_format: str) -> Iterator[bytes]:
    """Lines of `file` that are whole; in CSV a line break between quotes ends none."""
    record = b""
    for line in file:
        record += line
        if line.endswith(b"\n") and not (row_format == "csv" and record.count(b'"') % 2):
            yield record
            record = b""


def _image_of(record: bytes, row_format: str) -> str:
    if row_format == "jsonl":
        return json.loads(record)["image"]
    image, _, _ = next(csv.reader(io.StringIO(record.decode("utf-8", "surrogateescape"), newline="")))
    return image


@contextlib.contextmanager
def open_output(path: Path | None, row_format: str) -> Iterator[IO[bytes]]:
    """`path` for appending, or stdout; a new CSV file gets its header.

    Raises:
        RecipeError: The file cannot be written.
    """
    try:
        opened = path.open("ab") if path else contextlib.nullcontext(sys.stdout.buffer)
    except OSError as error:
        raise RecipeError(f"--output {path} cannot be written: {error.strerror}.") from error
    with opened as output:
        try:
            if row_format == "csv" and not (path and path.stat().st_size):
                write_line(output, dict(zip(CSV_COLUMNS, CSV_COLUMNS, strict=True)), row_format)
            yield output
        except BrokenPipeError:
            # Whoever reads stdout has seen enough (`| head`); Python would fail once more when it closes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_line(output: IO[bytes], row: dict[str, str], row_format: str) -> None:
    """Write `row` in one go, so that an end at any moment leaves whole lines and at most one torn one."""
    if row_format == "jsonl":
        # A file name that is not UTF-8 has lone surrogates: JSON spells them as escapes.
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    else:
        text = io.StringIO(newline="")
        csv.DictWriter(text, CSV_COLUMNS).writerow(row)  # lines end in CR LF, so that a CR in a name is quoted too
        line = text.getvalue().encode("utf-8", "surrogateescape")
    output.write(line)
    output.flush()


def sidecar_of(name: str) -> Path:
    """The text file beside a picture, as image trainers read it: `photos/cat.txt` for `photos/cat.jpg`."""
    return Path(name).with_suffix(".txt")


def write_sidecar(name: str, caption: str, overwrite: bool) -> bool:
    """Write `caption` beside the file `name`; False when another text is there and is kept. URLs have no side."""
    if URL.match(name):
        return True
    path = sidecar_of(name)
    if path.exists() and not overwrite:
        return path.read_text(encoding="utf-8", errors="replace").strip() == caption
    part = path.with_name(f".{path.name}.part")
    part.write_text(caption + "\n", encoding="utf-8")
    part.replace(path)
    return True


if __name__ == "__main__":
    run_command(main)
