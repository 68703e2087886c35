"""Open pictures from any source and in any mode as upright 8-bit RGB."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
from PIL import Image, ImageOps, features

from blip_recipe.data.downloads import download, private_addresses_allowed
from blip_recipe.data.shapes import ADDRESS, draw_scene, encode_picture, find_scene
from blip_recipe.errors import RecipeError

Picture: TypeAlias = Union[str, "PathLike[str]", bytes, Mapping[str, Any], Image.Image, np.ndarray, None]
"""A path, a URL, an encoded file, `{"bytes", "path"}` as `datasets` stores it, or an opened picture."""

MAX_PIXELS = 2 * 89_478_485
"""Maximum pixels of a picture: Pillow's default limit, twice `MAX_IMAGE_PIXELS`. It holds even if that was changed."""

LONGEST_NAME = 500
"""Maximum characters of a path or URL in messages: a whole picture in base64 may stand in its place."""

RANGES: dict[str, list[tuple[float, float]]] = {"I": [(0, 65535)], "F": [(0.0, 1.0), (0.0, 255.0), (0.0, 65535.0)]}
"""Common ranges of grey values in files of 32-bit integers and floats, narrowest first."""


AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
"""Brands in the `ftyp` box at the start of a file (ISO/IEC 23008-12)."""

try:
    from pillow_heif import register_heif_opener
except ImportError:
    HAS_HEIC = False
else:
    HAS_HEIC = True
    register_heif_opener()


class BadImageError(RecipeError):
    """A picture cannot be read. The message names it and says why."""


def open_image(image: Picture, *, timeout: float | None = None) -> Image.Image:
    """Open a picture as upright 8-bit RGB.

    EXIF orientation is applied. Animations give their first frame. Alpha channels are dropped, not composed, as in
    `load_image` of transformers, so published pipelines see the same pixels. Where a palette, grey or RGB file (GIF or
    PNG) marks one colour as transparent, the mark stays in `info["transparency"]`, and the image processors of
    transformers paint this colour white. Grey values of 16 bits and more are scaled to 8 bits; Pillow would clip them
    to white.

    Args:
        image: A path, an http or https URL, an encoded file, a struct `{"bytes", "path"}`, a uint8 array
            `(height, width[, 3])`, or an opened picture. A URL in a struct comes from a data set, so it may not have a
            private address (`downloads.py`).
        timeout: Maximum seconds for a download. Default: 30.

    Raises:
        BadImageError: The picture does not exist, is broken, or has more than 179 megapixels.
    """
    with wrap_image_errors(image):
        return to_upright_rgb(open_lazily(image, timeout))


def path_of(image: Picture) -> str | None:
    """The path or URL of a picture, if it has one."""
    path = image.get("path") if isinstance(image, Mapping) else image
    return str(path) if isinstance(path, (str, PathLike)) and str(path) else None


def describe(image: Picture) -> str:
    """Name `image` in error messages: by its path or URL if it has one, shortened if it is very long."""
    name = address(image)
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}… ({len(name):,} characters)"


def address(image: Picture) -> str:
    """The path or URL of `image`; without one, what it is."""
    if path := path_of(image):
        return path
    if isinstance(image, Mapping):
        return address(image.get("bytes"))
    if isinstance(image, bytes):
        return f"a picture of {len(image):,} bytes"
    return f"a picture in memory ({type(image).__name__})"


@contextmanager
def wrap_image_errors(image: Picture) -> Iterator[None]:
    """Turn any exception of an image parser into a `BadImageError` that names the picture."""
    try:
        yield
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(f"{describe(image)} cannot be read as a picture: {_reason(error)}") from error


def open_lazily(image: Picture, timeout: float | None = None) -> Image.Image:
    """Open a picture with Pillow, which reads its header but does not decode it.

    Raises:
        BadImageError: According to its header, it has more than 179 megapixels.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    if is_drawn(image):
        return draw_scene(find_scene(address(image)))
    source = _readable(image, timeout)
    try:
        opened = Image.open(source)
    except Image.UnidentifiedImageError as error:
        raise BadImageError(f"{describe(image)} {explain_format(source)}") from error
    if opened.width * opened.height > MAX_PIXELS:
        raise BadImageError(
            f"{describe(image)} has {opened.width} x {opened.height} pixels: expected at most {MAX_PIXELS:,} in all. "
            "Shrink it first."
        )
    return opened


def explain_format(source: io.BytesIO | Path) -> str:
    """Why Pillow does not know the format of a picture, as the end of a sentence."""
    head = source.read_bytes()[:64] if isinstance(source, Path) else source.getvalue()[:64]
    if not head:
        return "is empty: there is no picture"
    brands = {head[place : place + 4] for place in range(8, len(head), 4)} if head[4:8] == b"ftyp" else set()
    if brands.intersection(AVIF_BRANDS):
        if not features.check("avif"):
            return "is an AVIF picture: install pillow 11.3 or later"
    elif brands.intersection(HEIC_BRANDS) and not HAS_HEIC:
        return "is a HEIC picture: install blip-recipe[heic]"
    return "cannot be read as a picture: its format is unknown"


def is_url(image: Picture) -> bool:
    """Whether `image` must be downloaded."""
    source = image["path"] if isinstance(image, Mapping) and image.get("bytes") is None else image
    return isinstance(source, str) and "://" in source


def is_drawn(image: Picture) -> bool:
    """Whether `image` is the address of a scene of the embedded data set, which is drawn when it is opened."""
    return isinstance(image, Mapping) and image.get("bytes") is None and address(image).startswith(ADDRESS)


def read_content(image: Picture) -> bytes:
    """Read the encoded file of a picture from bytes, a path or a URL.

    Raises:
        BadImageError: The picture cannot be read.
    """
    with wrap_image_errors(image):
        source = _readable(image, None)
        return source.read_bytes() if isinstance(source, Path) else source.getvalue()


def _readable(image: Picture, timeout: float | None) -> io.BytesIO | Path:
    if is_drawn(image):
        return io.BytesIO(encode_picture(draw_scene(find_scene(address(image)))))
    named = isinstance(image, str)  # named by the caller; a struct comes from a data set
    if isinstance(image, Mapping):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes):
        return io.BytesIO(image)
    if isinstance(image, str) and "://" in image:
        return io.BytesIO(download(image, timeout=timeout, allow_private=named or private_addresses_allowed()))
    if isinstance(image, (str, PathLike)):
        path = Path(image)
        if path.exists() and not path.is_file():
            raise BadImageError(f"{path} is not a file: expected a picture.")  # reading a pipe might never end
        return path
    raise BadImageError("There is no picture: the image is empty.")


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened picture to upright 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.asarray(image).astype(np.int32))
    return (_scale_to_8_bits(image) if image.mode in RANGES else image).convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey values from the narrowest known range that fits, else from their minimum and maximum, to 0..255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    darkest, brightest = float(values.min()), float(values.max())
    known = [(low, high) for low, high in RANGES[image.mode] if low <= darkest and brightest <= high]
    low, high = known[0] if known else (darkest, brightest if brightest > darkest else darkest + 1)
    return Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))


def _reason(error: Exception) -> str:
    """The reason of an exception, as the end of a sentence."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file (in a data set, relative paths start at image_root)"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    return str(error) or type(error).__name__


def check_picture(image: Picture) -> str | None:
    """Decode a picture, and return what is wrong with it, or None."""
    return inspect_picture(image)[0]


def inspect_picture(image: Picture) -> tuple[str | None, bytes | None]:
    """Decode a picture, and return what is wrong with it, or None, and the digest of its encoded bytes.

    A JPEG is decoded at an eighth of its size, which still reads the whole file.
    """
    found = None
    try:
        with wrap_image_errors(image):
            content = None if isinstance(image, (Image.Image, np.ndarray)) else read_content(image)
            found = None if content is None else digest(content)
            opened = open_lazily(image if content is None else {"bytes": content, "path": describe(image)})
            opened.draft(None, (max(1, opened.width // 8), max(1, opened.height // 8)))
            ImageOps.exif_transpose(opened)
    except BadImageError as error:
        return str(error), found
    return None, found


def digest(content: bytes) -> bytes:
    """The digest of a picture's encoded bytes, 16 bytes long: equal pictures have equal digests."""
    return hashlib.blake2b(content, digest_size=16).digest()
