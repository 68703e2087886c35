"""Resize pictures as torchvision does, bit for bit, with numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

BITS = 15
"""Weights have at most this many bits, so that a product fits into an int32 (a picture's value has 8)."""

MOST = 22
"""Weights have at most this many bits after the point, so that sums fit into an int32."""

BLOCK = 16
"""Columns or rows that are computed in one product of matrices."""


def resize(picture: Image.Image, width: int, height: int, resample: int) -> np.ndarray:
    """Resize an RGB picture as torchvision resizes 8-bit tensors, with antialias.

    Both Pillow and torchvision widen the filter to the scale, go over the columns first and then over the rows, and
    round to 8 bits after each. Pillow's weights have 22 bits, torchvision's at most 15, so some values differ.

    Args:
        picture: The RGB picture.
        width: New width.
        height: New height.
        resample: A filter of Pillow; those that are not in `FILTERS` are left to Pillow.

    Returns:
        The 8-bit values `(3, height, width)`.
    """
    if resample not in FILTERS:
        resized = picture.resize((width, height), Image.Resampling(resample))
        return np.asarray(resized).transpose(2, 0, 1)
    channels = []
    for channel in picture.split():
        values = np.asarray(channel)
        if picture.width != width:
            values = _resize_rows(values.T, width, resample).T
        if picture.height != height:
            values = _resize_rows(values, height, resample)
        channels.append(values)
    return np.stack(channels)


def _resize_rows(values: np.ndarray, size: int, resample: int) -> np.ndarray:
    """Resize the first axis of 8-bit values `(rows, columns)` to `size`."""
    starts, weights, bits = integer_weights(len(values), size, resample)
    resized = np.empty((size, values.shape[1]), dtype=np.uint8)
    for begin in range(0, size, BLOCK):
        block = slice(begin, begin + BLOCK)
        first = starts[begin]
        places = starts[block, None] - first + np.arange(weights.shape[1])
        matrix = np.zeros((len(places), places.max() + 1))
        np.put_along_axis(matrix, places, weights[block], axis=1)
        rows = values[first : first + matrix.shape[1]].astype(np.float64)
        # Whole numbers below 2**53: float64 is exact, and products of float matrices are the fast ones.
        sums = matrix[:, : len(rows)] @ rows
        resized[block] = np.clip(np.floor((sums + 2.0 ** (bits - 1)) / 2.0**bits), 0, 255)
    return resized


@lru_cache(maxsize=64)
def integer_weights(old: int, new: int, resample: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The weights with which each new value adds up old ones.

    Args:
        old: Number of old values.
        new: Number of new values.
        resample: A key of `FILTERS`.

    Returns:
        For each new value the place of its first old one `(new,)`, the weights of this and the next ones
        `(new, most)`, and the number of bits after the point that the weights have.
    """
    function, reach = FILTERS[resample]
    scale = old / new
    widened = max(scale, 1.0)
    support = reach * widened
    centres = scale * (np.arange(new) + 0.5)
    starts = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centres + support + 0.5).astype(np.int64), old) - starts
    places = np.arange(counts.max())
    weights = function(np.abs((places + starts[:, None] - centres[:, None] + 0.5) / widened))
    weights[places >= counts[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    largest = float(weights.max())
    bits = next((number for number in range(MOST) if int(0.5 + largest * 2 ** (number + 1)) >= 2**BITS), MOST)
    scaled = weights * 2.0**bits
    return starts, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)), bits


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.clip(1 - distance, 0, None)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.5 (IEEE Transactions on Acoustics, Speech and Signal Processing 29, 1981)."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


FILTERS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    Image.Resampling.BILINEAR: (_linear, 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
}
"""The function and reach of each filter of Pillow, by its number."""
