"""Pictures as bytes for a model: the same pixels as `open_image`, decoded and resized several times faster."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from torchvision.io import ImageReadMode, decode_jpeg

from blip_recipe.data.images import Picture, naming_faults, open_lazily, to_upright_rgb

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture must be turned."""

TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    1: (False, ()),
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
"""Whether height and width of `(3, height, width)` change places, and which of them are mirrored then, by `ORIENTATION`
(EXIF 2.32, section 4.6.4)."""


def read_pixels(image: Picture) -> torch.Tensor:
    """The pixels of `open_image(image)`, uint8 `(3, height, width)`.

    JPEGs of grey and RGB are decoded by torchvision, whose pixels are Pillow's; all else, and whatever torchvision
    finds broken, is Pillow's.

    Raises:
        BadImageError: As `open_image`; sizes are read from the file's header and refused before anything is decoded.
    """
    with naming_faults(image):
        opened = open_lazily(image)
        # A camera's MPO is a JPEG with more pictures behind the first.
        if isinstance(opened, ImageFile) and opened.format in ("JPEG", "MPO") and opened.mode in ("L", "RGB"):
            return _decode_jpeg(opened)
        return to_pixels(to_upright_rgb(opened))


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An RGB picture as uint8 `(3, height, width)`."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """uint8 `(3, height, width)` as an RGB picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _decode_jpeg(opened: ImageFile) -> torch.Tensor:
    file = opened.fp
    if file is None:  # decoded before
        return to_pixels(to_upright_rgb(opened))
    file.seek(0)
    try:
        pixels = decode_jpeg(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        # Pillow has the last word on broken files, and reads some that torchvision does not.
        return to_pixels(to_upright_rgb(opened))
    turned, mirrored = TURNS.get(opened.getexif().get(ORIENTATION, 1), TURNS[1])
    return (pixels.transpose(1, 2) if turned else pixels).flip(mirrored)
