"""What the caption command writes: lines that can be resumed after any end, and a text beside each picture."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from blip_recipe.errors import RecipeError

CSV_COLUMNS = ("image", "caption", "error")
CSV_HEADER = b"image,caption,error\r\n"
JSON_START = b'{"image": "'


def finished_images(path: Path, row_format: str) -> set[str]:
    """The pictures that `path` has a line for; a last line that was cut off is removed from the file.

    Raises:
        RecipeError: The file holds something else, or cannot be read.
    """
    if not path.is_file():
        return set()
    names, size = set(), 0
    try:
        with path.open("rb") as file:
            for number, record in enumerate(_complete_records(file, row_format), start=1):
                size += len(record)
                if not (number == 1 and row_format == "csv"):
                    names.add(_image_name(record, row_format))
                elif record != CSV_HEADER:
                    raise ValueError(f"expected {CSV_HEADER!r}")
            file.seek(size)
            # What no line of this command begins with was not cut off, but is somebody else's file of one line.
            number = 1
            begin = CSV_HEADER if row_format == "csv" else JSON_START
            if not size and not begin.startswith(file.read(len(begin))):
                raise ValueError(f"expected {begin!r}")
        os.truncate(path, size)
    except OSError as error:
        raise RecipeError(f"--output {path} cannot be resumed: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RecipeError(
            f"--output {path}: line {number} is no {row_format} line of this command. Go on with a file "
            "that it wrote in the same --format, or name a new one."
        ) from error
    return names


def _complete_records(file: IO[bytes], row_format: str) -> Iterator[bytes]:
    """Lines of `file` that are whole; in CSV a line break between quotes ends none."""
    record = b""
    for line in file:
        record += line
        if line.endswith(b"\n") and not (row_format == "csv" and record.count(b'"') % 2):
            yield record
            record = b""


def _image_name(record: bytes, row_format: str) -> str:
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
        if row_format == "csv" and not (path and path.stat().st_size):
            write_line(output, dict(zip(CSV_COLUMNS, CSV_COLUMNS, strict=True)), row_format)
        yield output


def write_line(output: IO[bytes], row: dict[str, str], row_format: str) -> None:
    """Write `row` in one go, so that an end at any moment leaves whole lines and at most one torn one."""
    if row_format == "jsonl":
        # A file name that is not UTF-8 has lone surrogates: JSON spells them as escapes.
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    else:
        text = io.StringIO(newline="")
        csv.DictWriter(text, CSV_COLUMNS).writerow(row)  # lines end in CR LF, so that a CR in a name is quoted too
        line = text.getvalue().encode("utf-8", "surrogateescape")
    try:
        output.write(line)
        output.flush()
    except OSError as error:
        # Python would try once more to write what it holds when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        # Whoever reads stdout has seen enough (`| head`), or the disk is full.
        piped = isinstance(error, BrokenPipeError)
        sys.exit(
            0 if piped else f"error: {output.name} takes no more captions ({error.strerror}). It keeps what it has."
        )


def sidecar_path(name: str) -> str:
    """The text file beside a picture, as image trainers read it: `photos/cat.txt` for `photos/cat.jpg`."""
    stem, extension = os.path.splitext(name)  # noqa: PTH122 - pathlib raises for some names
    return f"{name if extension.lower() == '.txt' else stem}.txt"


def write_sidecar(name: str, caption: str, overwrite: bool) -> str | None:
    """Write `caption` beside the file `name`; gives the reason where it cannot. URLs have no side."""
    if "://" in name:
        return None
    path = Path(sidecar_path(name))
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists() and not overwrite:
            same = path.read_text(encoding="utf-8", errors="replace").strip() == caption
            return None if same else "another text is there, which --overwrite_sidecars replaces"
        part.write_text(caption + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        return error.strerror
    return None
