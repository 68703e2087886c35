"""Turn pictures into pixels as BLIP's image processor does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


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

        The processor resizes with torchvision, whose rounding differs from Pillow's: by at most 1 of 255, but for a few
        values in 100,000, which differ by 2 or 3. As in the processor, transparent colours become white.
        """
        if picture.info.get("transparency") is not None:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        resized = picture.resize((self.width, self.height), Image.Resampling(self.resample))
        values = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)
        mean, std = (np.array(each, dtype=np.float32)[:, None, None] * 255 for each in (self.mean, self.std))
        return ((values - mean) / std)[None]
