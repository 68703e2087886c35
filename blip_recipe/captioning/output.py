"""Write the output of the caption command: resumable JSON or CSV lines, and a text file next to each picture."""

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
    """Read the names of the pictures in an output file, and truncate an incomplete last line.

    Raises:
        RecipeError: The file cannot be read, or this command did not write it.
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
            # A single incomplete line must start like a line of this command; otherwise the file is another one.
            number = 1
            begin = CSV_HEADER if row_format == "csv" else JSON_START
            if not size and not begin.startswith(file.read(len(begin))):
                raise ValueError(f"expected {begin!r}")
        os.truncate(path, size)
    except OSError as error:
        raise RecipeError(f"--output {path} cannot be resumed: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RecipeError(
            f"--output {path}: line {number} is not a {row_format} line of this command. Choose a file that it wrote "
            "in the same --format, or a new file."
        ) from error
    return names


def _complete_records(file: IO[bytes], row_format: str) -> Iterator[bytes]:
    """Yield the complete records of `file`; in CSV a quoted line break does not end a record."""
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
    """Open `path` for appending, or stdout if it is None; a new CSV file gets a header.

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
    """Write `row` with one call, so that an interruption leaves at most one incomplete line."""
    if row_format == "jsonl":
        # A file name that is not UTF-8 has lone surrogates, which JSON escapes.
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    else:
        text = io.StringIO(newline="")
        csv.DictWriter(text, CSV_COLUMNS).writerow(row)  # with lines ending in CR LF, a CR in a name is quoted too
        line = text.getvalue().encode("utf-8", "surrogateescape")
    try:
        output.write(line)
        output.flush()
    except OSError as error:
        # Python would try to write its buffer again when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        # The reader of stdout has closed the pipe (`| head`), or the disk is full.
        piped = isinstance(error, BrokenPipeError)
        sys.exit(0 if piped else f"error: cannot write to {output.name} ({error.strerror}). Earlier captions are kept.")


def sidecar_path(name: str) -> str:
    """The path of a picture's caption file, as image trainers expect it: `cat.txt` for `cat.jpg`."""
    stem, extension = os.path.splitext(name)  # noqa: PTH122 - pathlib raises for some names
    return f"{name if extension.lower() == '.txt' else stem}.txt"


def write_sidecar(name: str, caption: str, overwrite: bool) -> str | None:
    """Write `caption` next to the file `name`, unless it is a URL; return the reason if it cannot be written."""
    if "://" in name:
        return None
    path = Path(sidecar_path(name))
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists() and not overwrite:
            same = path.read_text(encoding="utf-8", errors="replace").strip() == caption
            return None if same else "another text is there: set --overwrite_sidecars to replace it"
        part.write_text(caption + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        return error.strerror
    return None
