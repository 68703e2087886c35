"""Pictures by name: files, folders, globs and URLs, read ahead by threads."""

from __future__ import annotations

import glob
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

IMAGE_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
URL = re.compile("https?://", re.IGNORECASE)
READERS = 4
"""Threads that open pictures: decoding holds no lock, and more of them would hold more large pictures at once."""

Item = TypeVar("Item")
Result = TypeVar("Result")


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
