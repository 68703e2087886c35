"""List pictures from files, folders, globs and URLs, and read them ahead in threads."""

from __future__ import annotations

import glob
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TypeVar

from blip_recipe.errors import RecipeError

IMAGE_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
URL = re.compile("https?://", re.IGNORECASE)
READERS = 4
"""Number of threads that open pictures. Decoding releases the GIL; more threads would need more memory."""


def looks_like_picture(text: str) -> bool:
    """Whether a text is a URL, or ends like the name of a picture."""
    return bool(URL.match(text)) or text.lower().endswith(IMAGE_EXTENSIONS)


Item = TypeVar("Item")
Result = TypeVar("Result")


def list_images(paths: Iterable[str], stdin: IO[str]) -> Iterator[str]:
    """List the files and URLs of `paths` in order. `-` reads names from `stdin`. Missing files stay, to be reported."""
    for path in paths:
        if path == "-":
            yield from list_images((line.rstrip("\r\n") for line in stdin if line.strip() not in ("", "-")), stdin)
        elif URL.match(path) or os.path.isfile(path):  # noqa: PTH113 - pathlib raises for some names
            yield path
        elif os.path.isdir(path):  # noqa: PTH112
            yield from list_folder(path)
        else:
            # A name is a pattern only if no file has this name (checked above).
            yield from list(_list_glob(path)) or [path]


def check_places(paths: Sequence[str]) -> None:
    """Check that at least one of `paths` can be read. Addresses, and names on standard input, are not looked at.

    Raises:
        RecipeError: All are local, and none exists.
    """
    if any(path == "-" or "://" in path or os.path.exists(path) or any(_list_glob(path)) for path in paths):  # noqa: PTH110
        return
    first = Path(paths[0])
    neighbours = os.listdir(first.parent) if first.parent.is_dir() else []  # noqa: PTH208
    nearest = get_close_matches(first.name, neighbours, n=1)
    hint = f"Did you mean {first.parent / nearest[0]}? " if nearest else ""
    others = f", nor do the {len(paths) - 1:,} others" if len(paths) > 1 else ""
    raise RecipeError(
        f"{paths[0]!r} does not exist{others}. {hint}Expected a file, a folder, a pattern that matches pictures, a "
        "URL, or - for names on standard input."
    )


def list_folder(folder: str) -> Iterator[str]:
    """List the pictures below `folder` by extension, sorted by name, without hidden files and folders.

    A folder that cannot be listed is returned itself, to be reported. Only names are held in memory.
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


def read_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
    threads: int = READERS,
    prepare: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Item, Result]]:
    """Yield `(item, function(item))` in order, while threads process the next `ahead` items. `items` is read lazily.

    Each thread calls `prepare` first.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=prepare)
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
    """Escape line breaks and control characters in `text`, for safe printing of file names to a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
