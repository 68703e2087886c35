"""Pictures: opened from any source and mode as upright 8-bit RGB, and checked before training begins."""

from __future__ import annotations

import io
import logging
import string
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from os import PathLike, cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Picture: TypeAlias = Union[str, "PathLike[str]", bytes, Mapping[str, Any], Image.Image, np.ndarray, None]
"""A path, a URL, an encoded file, `{"bytes", "path"}` as `datasets` stores it, or a picture that is open already."""

MAX_PIXELS = 2 * 89_478_485
"""Larger pictures are refused: Pillow's own limit (twice its `MAX_IMAGE_PIXELS`), whoever has changed that."""

MAX_DOWNLOAD = 100 * 2**20
"""Bytes of the largest picture that is fetched."""

DOWNLOAD_TIMEOUT = 30.0
"""Seconds that fetching a picture may take in all."""

ATTEMPTS = 3
"""How often a picture is asked for when the network or the server falters."""

OFFENDERS_SHOWN = 10

RANGES: dict[str, list[tuple[float, float]]] = {"I": [(0, 65535)], "F": [(0.0, 1.0), (0.0, 255.0), (0.0, 65535.0)]}
"""Ranges of grey values that files of 32-bit integers and floats are known to use, narrowest first."""


class BadImageError(RecipeError):
    """A picture cannot be read. The message names it and says why."""


def open_image(image: Picture, *, timeout: float | None = None) -> Image.Image:
    """A picture as upright 8-bit RGB.

    EXIF orientation is applied. Of animations the first frame is taken. Transparency is dropped, not composed, as
    transformers' own processors do, so that published pipelines see the same pixels. Grey values of 16 bits and more
    are scaled to 8 bits, where Pillow would clip them to white.

    Args:
        image: A path, a URL, an encoded file, a struct `{"bytes", "path"}`, an array `(height, width[, 3])` of bytes,
            or a picture that is open already.
        timeout: Seconds that fetching a URL may take; default 30.

    Raises:
        BadImageError: There is no such picture, it is broken, or it has more than 179 megapixels.
    """
    with naming_faults(image):
        return to_upright_rgb(open_lazily(image, timeout))


def describe(image: Picture) -> str:
    """A short name of `image` for messages: its path or URL where it has one."""
    if isinstance(image, Mapping):
        return str(image["path"]) if image.get("path") else describe(image.get("bytes"))
    if isinstance(image, (str, PathLike)):
        return str(image)
    if isinstance(image, bytes):
        return f"a picture of {len(image):,} bytes"
    return f"a picture in memory ({type(image).__name__})"


@contextmanager
def naming_faults(image: Picture) -> Iterator[None]:
    """Turn whatever the parsers of broken files raise into an error that names the picture."""
    try:
        yield
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(f"{describe(image)} cannot be read as a picture: {_reason(error)}") from error


def open_lazily(image: Picture, timeout: float | None = None) -> Image.Image:
    """The picture as Pillow opens it: its header is read, its pixels are not.

    Raises:
        BadImageError: The header says that it has more than 179 megapixels.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    opened = Image.open(_readable(image, timeout))
    if opened.width * opened.height > MAX_PIXELS:
        raise BadImageError(
            f"{describe(image)} has {opened.width} x {opened.height} pixels: expected at most {MAX_PIXELS:,} in all. "
            "Shrink it first."
        )
    return opened


def _readable(image: Picture, timeout: float | None) -> io.BytesIO | Path:
    if isinstance(image, Mapping):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes):
        return io.BytesIO(image)
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return io.BytesIO(_download(image, DOWNLOAD_TIMEOUT if timeout is None else timeout))
    if isinstance(image, str) and "://" in image:
        import fsspec

        with fsspec.open(image, "rb") as file:
            return io.BytesIO(file.read())
    if isinstance(image, (str, PathLike)):
        return Path(image)
    raise BadImageError("There is no picture: the image is empty.")


def _download(url: str, timeout: float) -> bytes:
    """The content of `url`; asked for again when the network or the server falters."""
    for attempt in range(1, ATTEMPTS):
        try:
            return _fetch(url, timeout)
        except HTTPError as error:
            if error.code < 500 and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                raise
        except OSError as error:
            logger.info("%s: attempt %d failed (%s)", url, attempt, error)
        time.sleep(attempt)
    return _fetch(url, timeout)


def _fetch(url: str, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    content = bytearray()
    # Some image hosts refuse the libraries' own name; addresses may hold spaces and letters beyond ASCII.
    request = Request(quote(url, safe=string.punctuation), headers={"User-Agent": "blip_recipe"})
    with urlopen(request, timeout=timeout) as response:
        while part := response.read(2**16):
            content += part
            if len(content) > MAX_DOWNLOAD:
                raise BadImageError(f"{url} has more than {MAX_DOWNLOAD // 2**20} MiB: expected a picture.")
            if time.monotonic() > deadline:
                raise BadImageError(f"{url} was not there after {timeout:g} seconds.")
    return bytes(content)


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """What `open_image` makes of an opened picture."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.asarray(image).astype(np.int32))
    return (_scale_to_8_bits(image) if image.mode in RANGES else image).convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey values of a known range scaled by that range, others from the darkest to the brightest."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    darkest, brightest = float(values.min()), float(values.max())
    known = [(low, high) for low, high in RANGES[image.mode] if low <= darkest and brightest <= high]
    low, high = known[0] if known else (darkest, brightest if brightest > darkest else darkest + 1)
    return Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))


def _reason(error: Exception) -> str:
    """What an exception says, in words for the end of a sentence."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file (relative paths start at image_root)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is in no known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    return str(error) or type(error).__name__


def check_images(rows: Dataset, on_bad_image: Literal["fail", "skip"]) -> Dataset:
    """The rows whose pictures can be read; every picture is opened and decoded.

    Args:
        rows: A data set of `load_split`.
        on_bad_image: `"skip"` leaves the others out and logs each.

    Raises:
        RecipeError: With `"fail"`, a picture cannot be read: names the first ten. With `"skip"`, none can.
    """
    reasons = _find_bad_images(rows)
    if not reasons:
        return rows
    ids = rows.select_columns(["image_id"])
    messages = [f"image_id {ids[row]['image_id']}: {reason}" for row, reason in reasons.items()]
    if on_bad_image == "fail":
        shown = "\n  ".join(messages[:OFFENDERS_SHOWN])
        more = f"\n  and {len(messages) - OFFENDERS_SHOWN:,} more" if len(messages) > OFFENDERS_SHOWN else ""
        raise RecipeError(
            f"{len(messages):,} of {len(rows):,} pictures cannot be read:\n  {shown}{more}\n"
            "Repair or remove them, or set on_bad_image to 'skip' to go on without them."
        )
    if len(reasons) == len(rows):
        raise RecipeError(f"None of the {len(rows):,} pictures can be read. The first is {messages[0]}")
    for message in messages:
        logger.warning("Skipped %s", message)
    return rows.select([row for row in range(len(rows)) if row not in reasons])


def _find_bad_images(rows: Dataset) -> dict[int, str]:
    """Why pictures cannot be read, by row number."""
    from tqdm import tqdm

    images = rows.select_columns(["image"])

    def find_fault(row: int) -> str | None:
        try:
            _decode(images[row]["image"])
        except BadImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(32, cpu_count() or 1)) as threads:
        faults = threads.map(find_fault, range(len(images)))
        bar = tqdm(faults, desc="Checking pictures", total=len(images), unit="picture", file=sys.stderr, disable=None)
        return {row: fault for row, fault in enumerate(bar) if fault is not None}


def _decode(image: Picture) -> None:
    """Decode a picture and forget it; JPEGs at an eighth of their size, which still reads the file to its end."""
    with naming_faults(image):
        opened = open_lazily(image)
        opened.draft(None, (max(1, opened.width // 8), max(1, opened.height // 8)))
        ImageOps.exif_transpose(opened)
