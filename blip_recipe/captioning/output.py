"""Write the output of the caption command: resumable JSON or CSV lines, and a text file next to each picture."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, NamedTuple

from blip_recipe.errors import RecipeError, SaveError

COLUMNS = ("image", "caption", "error")
"""The columns of every CSV file."""

JSON_START = b'{"image": "'

Row = dict[str, Any]
"""A line of output: `image`, and either `error` or `caption` and what belongs to it."""


@dataclass(frozen=True)
class LineFormat:
    """How a row becomes a line.

    Attributes:
        name: `jsonl` or `csv`.
        columns: The columns of a CSV file. A cell with several values holds them as a JSON list.
    """

    name: str
    columns: tuple[str, ...] = COLUMNS

    @property
    def header(self) -> bytes:
        """The first line of a new file."""
        return self.encode(dict(zip(self.columns, self.columns, strict=True))) if self.name == "csv" else b""

    @property
    def start(self) -> bytes:
        """The bytes that a file starts with."""
        return self.header or JSON_START

    def encode(self, row: Row) -> bytes:
        """Encode `row` as a line."""
        if self.name == "jsonl":
            # A file name that is not UTF-8 has lone surrogates, which JSON escapes.
            return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        cells = {
            name: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
            for name, value in row.items()
        }
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns).writerow(cells)  # with lines ending in CR LF, a CR in a name is quoted too
        return text.getvalue().encode("utf-8", "surrogateescape")

    def read(self, line: bytes) -> tuple[str, bool]:
        """The name of a line's picture, and whether the picture failed.

        Raises:
            ValueError, KeyError, TypeError: It is not a line of this format.
        """
        if self.name == "jsonl":
            row = json.loads(line)
            return row["image"], "error" in row
        cells = next(csv.reader(io.StringIO(line.decode("utf-8", "surrogateescape"), newline="")))
        row = dict(zip(self.columns, cells, strict=True))
        return row["image"], bool(row["error"])


class Line(NamedTuple):
    """A complete line of a file: its picture, whether that failed, and where the line is, in bytes."""

    image: str
    failed: bool
    start: int
    size: int


class Finished(NamedTuple):
    """The pictures of an output file: those with a caption, and those with an error alone."""

    captioned: set[str]
    failed: set[str]


def read_lines(path: Path, lines: LineFormat) -> Iterator[Line]:
    """Read the complete lines of an output file, and truncate an incomplete last one at the end.

    Raises:
        RecipeError: The file cannot be read, or this command did not write it in this format.
    """
    if not path.is_file():
        return
    number, size = 1, 0
    try:
        with path.open("rb") as file:
            for number, record in enumerate(_complete_records(file, lines), start=1):
                if not (number == 1 and lines.header):
                    yield Line(*lines.read(record), size, len(record))
                elif record != lines.header:
                    raise ValueError(f"expected {lines.header!r}")
                size += len(record)
            file.seek(size)
            # A single incomplete line must start like a line of this command; otherwise the file is another one.
            if not size and not lines.start.startswith(file.read(len(lines.start))):
                raise ValueError(f"expected {lines.start!r}")
        os.truncate(path, size)
    except OSError as error:
        raise RecipeError(f"--output {path} cannot be resumed: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        written = f"with the columns {', '.join(lines.columns)}" if lines.header else "in the same --format"
        raise RecipeError(
            f"--output {path}: line {number} is not a {lines.name} line of this command. Choose a file that it wrote "
            f"{written}, or a new file."
        ) from error


def _complete_records(file: IO[bytes], lines: LineFormat) -> Iterator[bytes]:
    """Yield the complete records of `file`; in CSV a quoted line break does not end a record."""
    record = b""
    for line in file:
        record += line
        if line.endswith(b"\n") and not (lines.name == "csv" and record.count(b'"') % 2):
            yield record
            record = b""


def merge_lines(path: Path, lines: LineFormat, parts: Sequence[Path] = ()) -> Finished:
    """Rewrite an output file with one line per picture, in the order of their first lines; returns the pictures.

    An incomplete last line is removed. A caption takes the place of the errors of its picture; of several errors the
    last stays. The lines of `parts` are added in turn, one of each at a time, and the parts are deleted. The file is
    replaced atomically, so a killed process loses no line. A file that has one line per picture already, without parts,
    is not touched.

    Raises:
        RecipeError: A file cannot be read, or this command did not write it.
        SaveError: The file cannot be written.
    """
    chosen: dict[str, tuple[int, Line]] = {}
    count = 0
    sources = [path, *parts]
    for source, line in _read_in_turn(sources, lines):
        count += 1
        before = chosen.get(line.image)
        if before is None or before[1].failed:
            chosen[line.image] = source, line
    finished = Finished(set(), set())
    for image, (_, line) in chosen.items():
        (finished.failed if line.failed else finished.captioned).add(image)
    if not parts and count == len(chosen):
        return finished
    try:
        _write_lines(path.resolve(), lines.header, sources, list(chosen.values()))
    except OSError as error:
        raise SaveError(
            f"{path} cannot be rewritten with one line per picture: {error.strerror}. No caption is lost: make room "
            "and run the same command again."
        ) from error
    for part in parts:
        part.unlink()
    return finished


def _read_in_turn(sources: Sequence[Path], lines: LineFormat) -> Iterator[tuple[int, Line]]:
    """Number of the source and line: all lines of the first source, then those of the others in turn."""
    first, *others = (read_lines(source, lines) for source in sources)
    yield from ((0, line) for line in first)
    for turn in zip_longest(*others):
        yield from ((number, line) for number, line in enumerate(turn, start=1) if line is not None)


def _write_lines(path: Path, header: bytes, sources: Sequence[Path], places: Sequence[tuple[int, Line]]) -> None:
    """Replace `path` by a file of the lines at `places`, which are numbers of `sources` and lines in them."""
    aside = path.with_name(f".{path.name}.merged")  # a killed process leaves it to the next, which writes it anew
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(source.open("rb") if source.exists() else io.BytesIO()) for source in sources]
        merged = stack.enter_context(aside.open("wb"))
        merged.write(header)
        for source, line in places:
            files[source].seek(line.start)
            merged.write(files[source].read(line.size))
        merged.flush()
        os.fsync(merged.fileno())
    if path.exists():
        shutil.copymode(path, aside)
    aside.replace(path)


def part_path(path: Path, rank: int) -> Path:
    """The file of the lines of one of several processes."""
    return path.with_name(f"{path.name}.part-{rank:05}")


def find_parts(path: Path) -> list[Path]:
    """The files of several processes that were not merged, in order."""
    name = re.compile(re.escape(path.name) + r"\.part-\d{5}")
    return sorted(each for each in path.parent.iterdir() if name.fullmatch(each.name)) if path.parent.is_dir() else []


@contextlib.contextmanager
def open_output(path: Path | None, lines: LineFormat) -> Iterator[IO[bytes]]:
    """Open `path` for appending, or stdout if it is None; a new CSV file gets a header.

    Raises:
        RecipeError: The file cannot be written.
    """
    try:
        opened = path.open("ab") if path else contextlib.nullcontext(sys.stdout.buffer)
    except OSError as error:
        raise RecipeError(f"--output {path} cannot be written: {error.strerror}.") from error
    with opened as output:
        if lines.header and not (path and path.stat().st_size):
            _write(output, lines.header)
        yield output


def write_line(output: IO[bytes], row: Row, lines: LineFormat) -> None:
    """Write `row` with one call, so that an interruption leaves at most one incomplete line."""
    _write(output, lines.encode(row))


def _write(output: IO[bytes], line: bytes) -> None:
    try:
        output.write(line)
        output.flush()
    except OSError as error:
        # Python would try to write its buffer again when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        # The reader of stdout has closed the pipe (`| head`), or the disk is full.
        piped = isinstance(error, BrokenPipeError)
        sys.exit(0 if piped else f"error: cannot write to {output.name} ({error.strerror}). Earlier captions are kept.")


@dataclass(frozen=True)
class Sidecars:
    """How captions are written to text files beside the pictures.

    Attributes:
        overwrite: Whether to replace a text that is there.
        append: Whether to append the caption to a text that is there, unless the text has it already.
        separator: Text between an existing text and a caption.
    """

    overwrite: bool = False
    append: bool = False
    separator: str = ", "

    def write(self, name: str, caption: str) -> str | None:
        """Write `caption` next to the file `name`, unless it is a URL; return the reason if it cannot be written."""
        if "://" in name:
            return None
        path = Path(sidecar_path(name))
        part = path.with_name(f".{path.name}.part")
        try:
            there = ""
            if path.exists() and not self.overwrite:
                there = path.read_bytes().decode("utf-8").rstrip()  # bytes keep the line ends of the text
                if there.strip() == caption or (self.append and self._has(there, caption)):
                    return None
                if not self.append:
                    return "another text is there: set --overwrite_sidecars to replace it"
            text = f"{there}{self.separator}{caption}" if there else caption
            part.write_bytes(f"{text}\n".encode())
            part.replace(path)
        except UnicodeDecodeError:
            return "the text that is there is not UTF-8"
        except OSError as error:
            return error.strerror
        return None

    def _has(self, there: str, caption: str) -> bool:
        """Whether `caption` is one of the parts of a text."""
        ends = self.separator
        return f"{ends}{caption}{ends}" in f"{ends}{there}{ends}"


def sidecar_path(name: str) -> str:
    """The path of a picture's caption file, as image trainers expect it: `cat.txt` for `cat.jpg`."""
    stem, extension = os.path.splitext(name)  # noqa: PTH122 - pathlib raises for some names
    return f"{name if extension.lower() == '.txt' else stem}.txt"
