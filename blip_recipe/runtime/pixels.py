"""Turn pictures into pixels as BLIP's image processor does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from blip_recipe.runtime.resizing import resize


@dataclass(frozen=True)
class PixelSettings:
    """The settings of the image processor.

    Attributes:
        height: Height of the model's input.
        width: Width of the model's input.
        mean: Mean of each channel, of values from 0 to 1.
        std: Standard deviation of each channel.
        resample: The filter of Pillow; 3 is bicubic.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 3

    def read(self, picture: Image.Image) -> np.ndarray:
        """The `pixel_values` `(1, 3, height, width)` in float32 of an RGB picture.

        As in the processor, a colour that is marked as transparent becomes white.
        """
        if picture.info.get("transparency") is not None:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        values = resize(picture, self.width, self.height, self.resample).astype(np.float32)
        mean, std = (np.array(each, dtype=np.float32)[:, None, None] * 255 for each in (self.mean, self.std))
        return ((values - mean) / std)[None]
