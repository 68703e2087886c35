"""Encode small JPEGs for pages and cards, without the metadata of their pictures."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blip_recipe.data.images import BadImageError, Picture, open_lazily, to_upright_rgb, wrap_image_errors
from blip_recipe.data.storage import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_INLINE_BYTES = 36_000_000
"""Maximum bytes of all thumbnails in a page. Base64 makes 48 MB of them."""

SIDES = ((1_000, 320), (None, 200))
"""Longer side of a thumbnail in pixels, for at most so many pictures. Photos have about 13 and 6 kB at these sizes."""

QUALITY = 70

AT_A_TIME = 64
"""Pictures that are read before they are encoded, to bound the memory of large ones."""


class Thumbnails(NamedTuple):
    """The thumbnails of a page: picture `n` has the address `prefix + files[n]`.

    Attributes:
        prefix: The start of an address: that of a `data:` URI, or a folder.
        files: Base64, or the name of a file. Empty for a picture that cannot be read.
    """

    prefix: str
    files: list[str]


INLINE = "data:image/jpeg;base64,"


def encode_jpeg(image: Image, side: int, quality: int) -> bytes:
    """Encode a picture as a JPEG of at most `side` pixels, without metadata, which may contain the place of a photo."""
    small = image.copy()
    small.thumbnail((side, side))
    small.info.clear()
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=quality)
    return file.getvalue()


def encode_thumbnail(picture: Picture, side: int, quality: int = QUALITY) -> bytes:
    """Open a picture from any source, and encode it as a small JPEG.

    Raises:
        BadImageError: The picture cannot be read.
    """
    with wrap_image_errors(picture):
        opened = open_lazily(picture)
        # A JPEG is decoded at a half, a quarter or an eighth of its size, which is faster.
        opened.draft(None, (2 * side, 2 * side))
        return encode_jpeg(to_upright_rgb(opened), side, quality)


def encode_inline(picture: Picture, side: int, quality: int = QUALITY) -> str:
    """Encode a picture as a small JPEG in base64.

    Raises:
        BadImageError: The picture cannot be read.
    """
    return base64.b64encode(encode_thumbnail(picture, side, quality)).decode()


def make_thumbnails(read: Callable[[int], Picture], count: int, folder: Path, max_inline_bytes: int) -> Thumbnails:
    """Make the thumbnails of a page: in the page, or in a folder beside it if they are too large for that.

    Args:
        read: Returns picture `n`.
        count: Number of pictures.
        folder: The folder for large thumbnails. Thumbnails of an earlier page are deleted from it.
        max_inline_bytes: Maximum bytes of all thumbnails in the page.
    """
    remove_thumbnails(folder)
    side = next(side for most, side in SIDES if most is None or count <= most)
    contents: list[bytes] = []
    files: list[str] = []
    size = 0
    for content in _encode_all(read, count, side):
        contents.append(content)
        size += len(content)
        if size > max_inline_bytes:
            files += _write_files(contents, len(files), folder)
            contents.clear()
    if files:
        return Thumbnails(f"{folder.name}/", files + _write_files(contents, len(files), folder))
    return Thumbnails(INLINE, [base64.b64encode(content).decode() for content in contents])


def remove_thumbnails(folder: Path) -> None:
    """Delete the thumbnails of an earlier page, and their folder if it has no other files."""
    for path in folder.glob("[0-9]*.jpg"):
        path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _encode_all(read: Callable[[int], Picture], count: int, side: int) -> Iterator[bytes]:
    """The thumbnails in order; no bytes for a picture that cannot be read."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, count, AT_A_TIME):
            # The pictures are read in this thread: a table may not be read by several at a time.
            pictures = [_try_to_read(read, number) for number in range(first, min(count, first + AT_A_TIME))]
            yield from pool.map(lambda picture: _try_to_encode(picture, side), pictures)


def _try_to_read(read: Callable[[int], Picture], number: int) -> Picture:
    try:
        return read(number)
    except (BadImageError, OSError):
        return None


def _try_to_encode(picture: Picture, side: int) -> bytes:
    try:
        return encode_thumbnail(picture, side)
    except BadImageError:
        return b""


def _write_files(contents: Sequence[bytes], first: int, folder: Path) -> list[str]:
    names = [f"{number:06}.jpg" if content else "" for number, content in enumerate(contents, start=first)]
    for name, content in zip(names, contents, strict=True):
        if content:
            write_atomically(folder / name, content)
    return names
