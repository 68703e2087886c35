"""Read captions from text files of columns: CSV, TSV, Flickr8k's and Flickr30k's files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from blip_recipe.data.columns import is_caption
from blip_recipe.data.layouts.table import Record, Table, table_of, warn_left_out
from blip_recipe.data.listing import looks_like_picture
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

DELIMITERS = ("\t", ",", ";", "|")
PROBED = 20
"""Number of lines that decide the delimiter."""

MAX_LINES_OF_CELL = 100
"""A quoted cell with more lines is taken for a quote that is never closed."""

FLICKR30K = ["image_name", "comment_number", "comment"]
"""The columns of Flickr30k's `results.csv`, whose captions are called comments."""

_CAPTION_NUMBER = re.compile(r"#\d+$")
"""The number of a caption behind the name of its picture, as in `Flickr8k.token.txt`."""
_LINE_END = re.compile(r"\r\n|\n|\r")
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")


def read_columns(file: Path) -> Table:
    """Read a text file of columns, with or without a line of names.

    The delimiter is a tab, comma, semicolon or bar. Without a line of names, the first column that holds paths or URLs
    of pictures is `image`, and the last other column is `caption`.

    Raises:
        RecipeError: It is not text, has a quote that is never closed, or a single column.
    """
    return table_of(read_records(file), file.parent)


def read_records(file: Path) -> list[Record]:
    """Read the rows of a text file of columns as dictionaries (see `read_columns`)."""
    text = read_text(file)
    delimiter = _find_delimiter(text, file)
    lines = list(_parse(text, delimiter, file))
    names = _names_of(lines, file)
    body = lines[1:] if names[:-1] == lines[0][1][:-1] else lines
    if is_caption(names[-1]):
        raw = _LINE_END.split(text)
        body = [(number, _split_bare(cells, raw[number - 1], len(names), delimiter)) for number, cells in body]
    wrong = [number for number, cells in body if len(cells) != len(names)]
    warn_left_out(file, f"lines do not have the columns {', '.join(names)} and are left out; their numbers", wrong)
    records = [dict(zip(names, cells, strict=True)) for _, cells in body if len(cells) == len(names)]
    return _convert_columns(records, names)


def read_text(file: Path) -> str:
    """Read a text file in UTF-8 or, with its mark, UTF-16.

    Raises:
        RecipeError: It cannot be read, or is not text.
    """
    try:
        content = file.read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{file} is not text in UTF-8 (byte {error.start:,}): convert it, for example with "
            f"`iconv -f latin1 -t utf-8 {file.name}`."
        ) from error


def _find_delimiter(text: str, file: Path) -> str:
    """The delimiter that is in most of the first lines, and most often as often as in the first."""
    lines = [line for line in text.splitlines() if line.strip()][:PROBED]
    if not lines:
        raise RecipeError(f"{file} is empty: expected a row for each caption, with a picture and a text.")

    def fit(delimiter: str) -> tuple[int, int]:
        counts = [line.count(delimiter) for line in lines]
        return sum(map(bool, counts)), sum(count == counts[0] for count in counts)

    best = max(DELIMITERS, key=fit)
    if not fit(best)[0]:
        raise RecipeError(
            f"{file} has a single column, such as {lines[0][:80]!r}: expected the name of a picture and its caption "
            "in each line, separated by a tab or comma."
        )
    return best


def _parse(text: str, delimiter: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the cells of each row; quotes only count if all of them are closed."""
    # Captions in files of tabs and bars are often written without quoting: `"` is then a character like others.
    quoted = delimiter in ",;" or all(line.count('"') % 2 == 0 for line in text.splitlines())
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=True,
    )
    before = 0
    try:
        for cells in reader:
            if reader.line_num - before > MAX_LINES_OF_CELL:
                raise RecipeError(f'{file}, line {before + 1}: a quote is never closed. Write a quote in a cell as "".')
            before = reader.line_num
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise RecipeError(f"{file}, line {reader.line_num}: {error}.") from error


def _split_bare(cells: list[str], line: str, count: int, delimiter: str) -> list[str]:
    """The cells of a line whose last one, a caption without quotes, contains the delimiter."""
    if len(cells) <= count or '"' in line:
        return cells
    return [cell.strip() for cell in line.split(delimiter, count - 1)]


def _names_of(lines: Sequence[tuple[int, list[str]]], file: Path) -> list[str]:
    """The names of the columns: the first line, unless it names a picture."""
    first = lines[0][1]
    if not any(map(looks_like_picture, map(picture_of, first))):
        return [*first[:-1], "caption"] if first == FLICKR30K else first
    pictures = [number for number, cell in enumerate(first) if looks_like_picture(picture_of(cell))]
    texts = [number for number in range(len(first)) if number not in pictures]
    if not texts:
        raise RecipeError(f"{file} has pictures but no captions in its first line, {', '.join(first)[:80]!r}.")
    names = [f"column_{number}" for number in range(len(first))]
    names[pictures[0]], names[texts[-1]] = "image", "caption"
    return names


def picture_of(cell: str) -> str:
    """The name of a picture, without the number of a caption (`1.jpg#0`)."""
    name = _CAPTION_NUMBER.sub("", cell)
    return name if looks_like_picture(name) else cell


def _convert_columns(records: list[Record], names: Sequence[str]) -> list[Record]:
    """Convert columns of whole numbers, such as ids, and remove the numbers of captions from names of pictures."""
    for name in names:
        values = [record[name] for record in records]
        if not is_caption(name) and all(map(_INTEGER.fullmatch, values)):
            values = list(map(int, values))
        elif values and looks_like_picture(picture_of(values[0])):
            values = list(map(picture_of, values))
        for record, value in zip(records, values, strict=True):
            record[name] = value
    return records
