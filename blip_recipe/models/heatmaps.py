"""Draw maps of words over a picture, and save them as a picture or as arrays."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blip_recipe.data.storage import write_atomically
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

PANEL = 256
"""Longer side of a panel's picture in pixels."""
PER_ROW = 6
"""Panels in a row; the others are in further rows."""
GAP = 8
"""Pixels between panels."""
FONT_SIZE = 22
SMALLEST_FONT = 12
"""A longer word is set in a smaller font, down to this one, and then cut."""
LABEL = 36
"""Height in pixels of the word under a panel."""
BACKGROUND, INK = "#ffffff", "#1f2328"

RAMP = ((0.0, (0, 0, 40)), (0.35, (120, 20, 110)), (0.7, (240, 90, 40)), (1.0, (255, 240, 120)))
"""Colours of weights between 0 and the largest of a map, from dark to light, so that a print in grey shows them too."""
OPACITY = 0.65
"""How much of a panel is the map; the rest is the picture."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """A map of weights over a picture for each word of a text, by Grad-CAM of a cross-attention.

    Attributes:
        image: The picture, upright and in RGB.
        text: The caption, question or text that was explained.
        words: The words with a map: those of the text, or of the answer.
        maps: `(words, rows, columns)` in float32, the weight of each patch of the picture, 0 or more; not normalised.
        scores: The explained scores: the log-probability of each word of a caption or answer, `(words,)`, or one value,
            `(1,)`: the log-probability of an answer, or the ITM logit of a match.
        layer: The layer of the text model, counted from 0.
        answer: The answer to a question; None for captions and matches.
    """

    image: Image.Image
    text: str
    words: tuple[str, ...]
    maps: np.ndarray
    scores: np.ndarray
    layer: int
    answer: str | None = None

    def select(self, words: Sequence[str]) -> Explanation:
        """Keep the maps of these words and phrases, in the order of the text; upper and lower case count as equal.

        A phrase, such as `"red circle"`, has the mean of the maps of its words, as LAVIS averages a text, and the sum
        of their scores where each word has one.

        Raises:
            RecipeError: A word or phrase is not in the text.
        """
        spans = sorted({span for phrase in words for span in self._find(phrase)})
        scores = self.scores
        if len(scores) == len(self.words) > 1:
            scores = np.array([scores[start:stop].sum() for start, stop in spans])
        texts = tuple(" ".join(self.words[start:stop]) for start, stop in spans)
        maps = np.stack([self.maps[start:stop].mean(0) for start, stop in spans])
        return Explanation(self.image, self.text, texts, maps, scores, self.layer, self.answer)

    def _find(self, phrase: str) -> list[tuple[int, int]]:
        """The first word and the one behind the last of each place where the text has a phrase.

        Raises:
            RecipeError: The text does not have it.
        """
        there, wanted = [word.lower() for word in self.words], phrase.lower().split()
        starts = [n for n in range(len(there)) if wanted and there[n : n + len(wanted)] == wanted]
        if not starts:
            kind = "phrase" if len(wanted) > 1 else "word"
            raise RecipeError(f"--words has {phrase!r}, which is not a {kind} of the text: {', '.join(self.words)}.")
        return [(start, start + len(wanted)) for start in starts]

    def draw(self) -> Image.Image:
        """Draw the picture, then for each word the picture under its map, in rows of `PER_ROW` panels.

        Each map is scaled by its own largest weight.
        """
        scale = PANEL / max(self.image.size)
        size = (max(1, round(self.image.width * scale)), max(1, round(self.image.height * scale)))
        small = self.image.resize(size, Image.Resampling.LANCZOS)
        title = self.text if self.answer is None else f"{self.text} {self.answer}"
        panels = [
            (small, title),
            *((_overlay(small, each), word) for each, word in zip(self.maps, self.words, strict=True)),
        ]
        return _arrange(panels)

    def save(self, path: str | PathLike[str]) -> None:
        """Save the explanation in the format of the extension of `path`.

        `.png`: the picture that `draw` returns. `.npz`: arrays `words`, `maps`, `scores`, `layer`, `text` and, for a
        question, `answer`. `.npy`: `maps` alone. The arrays are read with `allow_pickle=False`.

        Raises:
            RecipeError: `path` has another extension.
        """
        write_atomically(Path(path), find_writer(path)(self))


def find_writer(path: str | PathLike[str]) -> Callable[[Explanation], bytes]:
    """The writer for the extension of `path`.

    Raises:
        RecipeError: The extension is unknown.
    """
    writer = WRITERS.get(Path(path).suffix.lower())
    if writer is None:
        raise RecipeError(f"--output is {str(path)!r}: expected a name that ends in one of {', '.join(WRITERS)}.")
    return writer


def _png(explanation: Explanation) -> bytes:
    buffer = io.BytesIO()
    explanation.draw().save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _npy(explanation: Explanation) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, explanation.maps, allow_pickle=False)
    return buffer.getvalue()


def _npz(explanation: Explanation) -> bytes:
    buffer = io.BytesIO()
    answer = {} if explanation.answer is None else {"answer": np.array(explanation.answer)}
    np.savez(
        buffer,
        allow_pickle=False,
        words=np.array(explanation.words),
        maps=explanation.maps,
        scores=explanation.scores,
        layer=np.array(explanation.layer),
        text=np.array(explanation.text),
        **answer,
    )
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Explanation], bytes]] = {".png": _png, ".npz": _npz, ".npy": _npy}


def _overlay(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """Blend a picture with the colours of `weights` `(rows, columns)`, scaled to their maximum."""
    peak = float(weights.max())
    patches = Image.fromarray(weights / peak if peak > 0 else weights)
    smooth = np.asarray(patches.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    places = [place for place, _ in RAMP]
    heat = np.stack([np.interp(smooth, places, [colour[band] for _, colour in RAMP]) for band in range(3)], axis=-1)
    return Image.blend(picture, Image.fromarray(heat.round().astype(np.uint8)), OPACITY)


def _arrange(panels: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Arrange pictures with their labels in rows."""
    width, height = panels[0][0].size
    width = max(width, PANEL // 2)  # room for the word under a narrow picture
    columns = min(PER_ROW, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + LABEL + GAP)), BACKGROUND)
    canvas = ImageDraw.Draw(sheet)
    for number, (picture, label) in enumerate(panels):
        row, column = divmod(number, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + LABEL + GAP)
        sheet.paste(picture, (left + (width - picture.width) // 2, top))
        text, font = _fit(label, width)
        canvas.text((left + width / 2, top + height + LABEL / 2), text, INK, font, anchor="mm")
    return sheet


def _fit(text: str, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and the largest font in which it is at most `width` pixels wide; a text that is too long is cut."""
    for size in range(FONT_SIZE, SMALLEST_FONT, -2):
        if _font(size).getlength(text) <= width:
            return text, _font(size)
    font = _font(SMALLEST_FONT)
    if font.getlength(text) <= width:
        return text, font
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…", font


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Latin, Greek and Cyrillic with all accents, and Arabic."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
