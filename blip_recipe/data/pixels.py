"""Pictures as bytes for a model: the pixels of `open_image`, decoded and resized several times faster.

What the image processor does is done in two places: pictures are resized as bytes by the processes that read them
(`resize_pixels`), and become normalised floats on the device (`normalize_pixels`), so that a quarter of the memory goes
through processes and to the GPU. Both are the stock processor's own steps: together they give its `pixel_values`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from torchvision.io import ImageReadMode, decode_jpeg

from blip_recipe.data.images import Picture, open_lazily, to_upright_rgb, wrap_image_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import BlipImageProcessor
    from transformers.image_utils import SizeDict

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
    with wrap_image_errors(image):
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


def resize_pixels(pixels: torch.Tensor, image_processor: BlipImageProcessor) -> torch.Tensor:
    """`pixels` `(3, height, width)` of bytes in the size of the image processor, still bytes.

    Bicubic with antialiasing, equal to the last bit to what the stock image processor makes of the picture before it
    normalises. (Pillow's own filter, in the stock variant for Pillow, rounds between columns and rows, and differs from
    both: by 0.024 of 255 levels on average over 86 photographs at 384 pixels, by 10 at most.)
    """
    return image_processor.resize(pixels, cast("SizeDict", image_processor.size), image_processor.resample)


def stack_pixels(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """`(images, 3, height, width)` of pictures of one size, colours side by side in memory.

    So they are decoded and resized; the device puts colours behind one another faster (`normalize_pixels`).
    """
    return torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)


def read_resized(pictures: Sequence[Picture | torch.Tensor], image_processor: BlipImageProcessor) -> torch.Tensor:
    """Pictures, or what `read_pixels` gives of them, in the size of the image processor: bytes as of `stack_pixels`."""
    pixels = [each if isinstance(each, torch.Tensor) else read_pixels(each) for each in pictures]
    return stack_pixels([resize_pixels(each, image_processor) for each in pixels])


def normalize_pixels(pixels: torch.Tensor, image_processor: BlipImageProcessor) -> torch.Tensor:
    """Bytes `(images, 3, height, width)` as the float32 `pixel_values` of the stock image processor.

    Floats are taken for normalised already.
    """
    if pixels.is_floating_point():
        return pixels
    return image_processor.rescale_and_normalize(
        pixels.contiguous(),
        image_processor.do_rescale,
        image_processor.rescale_factor,
        image_processor.do_normalize,
        image_processor.image_mean,
        image_processor.image_std,
    )


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
