"""Text of any length and script as lines of a given width, drawn with fonts that have its characters."""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from matplotlib.axes import Axes
    from matplotlib.font_manager import FontEntry, FontProperties

logger = logging.getLogger(__name__)

FONT = "DejaVu Sans"
"""The font that matplotlib brings: Latin, Greek, Cyrillic, Arabic, Hebrew and more, but no Chinese."""

LINE_HEIGHT = 1.3
ELLIPSIS = "…"
ZERO_WIDTH_JOINER = "\u200d"


@dataclass(frozen=True)
class Line:
    """A line of text and where it stands: `top` in pixels, `size` in pixels, at an edge of its column."""

    text: str
    top: float
    size: float
    colour: str
    font: FontProperties
    align: Literal["left", "right"]


class Typesetter:
    """Measures, wraps and draws text.

    Args:
        texts: All texts to come: installed fonts are searched for those characters that matplotlib's own lacks. A
            character that no font has is drawn as a box and named in one warning.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        from matplotlib.backends.backend_agg import RendererAgg

        self._renderer = RendererAgg(1, 1, 72)
        families, missing = find_fonts(texts)
        self._families = [FONT, *families]
        if missing:
            logger.warning(
                "No installed font has %d characters of the sample captions (%s): they are drawn as boxes. Install a "
                "font that has them, such as one of the Noto family, and run again.",
                len(missing),
                missing[:20],
            )

    def lay_out(
        self,
        text: str,
        top: float,
        width: float,
        *,
        size: float,
        colour: str,
        bold: bool = False,
        align: Literal["left", "right"] = "left",
        max_lines: int = 1,
    ) -> tuple[list[Line], float]:
        """Wrap `text` into lines of at most `width` pixels.

        Returns:
            The lines, and where the next text may begin. Text that is written from the right stands at the right edge;
            what does not fit into `max_lines` ends in an ellipsis.
        """
        from matplotlib.font_manager import FontProperties

        # Fonts of other scripts rarely have a bold face, and half a line in bold looks worse than none.
        weight = "bold" if bold and len(self._families) == 1 else "normal"
        font = FontProperties(family=self._families, size=size, weight=weight)
        text = clean_text(text)
        wrapped = wrap_text(text, lambda line: self._measure(line, font), width, max_lines)
        if reads_from_the_right(text):
            align = "right"
        height = size * LINE_HEIGHT
        lines = [Line(line, top + i * height, size, colour, font, align) for i, line in enumerate(wrapped)]
        return lines, top + len(lines) * height

    def draw(self, axes: Axes, line: Line, left: float, width: float) -> None:
        """Draw a line into the column that begins at `left`, on axes whose unit is the pixel."""
        x = left if line.align == "left" else left + width
        # On the baseline, so that lines keep their distance whatever glyphs they have. `$` is no formula.
        axes.text(
            x,
            line.top + line.size,
            line.text,
            fontproperties=line.font,
            color=line.colour,
            ha=line.align,
            va="baseline",
            parse_math=False,
        )

    def _measure(self, text: str, font: FontProperties) -> float:
        return self._renderer.get_text_width_height_descent(text, font, ismath=False)[0]


def clean_text(text: str) -> str:
    """Text that can be drawn: white space folded, control characters and halves of surrogate pairs gone."""
    return "".join(c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cs"))


def reads_from_the_right(text: str) -> bool:
    """Whether the first letter with a direction is of a script written from right to left, such as Arabic."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((each for each in directions if each in ("L", "R", "AL")), "L") != "L"


def wrap_text(text: str, measure: Callable[[str], float], width: float, max_lines: int) -> list[str]:
    """Break `text` into at most `max_lines` lines of at most `width` by `measure`; words wider than that are cut."""
    lines = [""]
    for unit in split_units(text):
        pieces = [unit] if measure(unit.rstrip()) <= width else split_clusters(unit)
        for piece in pieces:
            if lines[-1] and measure((lines[-1] + piece).rstrip()) > width:
                if len(lines) == max_lines:
                    return [*map(str.rstrip, lines[:-1]), _shorten(lines[-1], measure, width)]
                lines.append("")
            lines[-1] += piece
    return [line.rstrip() for line in lines]


def _shorten(line: str, measure: Callable[[str], float], width: float) -> str:
    """`line` with an ellipsis at its end, and as much less text as that needs."""
    clusters = split_clusters(line.rstrip())
    while clusters and measure("".join(clusters).rstrip() + ELLIPSIS) > width:
        clusters.pop()
    return "".join(clusters).rstrip() + ELLIPSIS


def split_units(text: str) -> list[str]:
    """The pieces that a line may be broken between: words with the space after them, and Chinese characters.

    Closing punctuation stays with what it closes.
    """
    units: list[str] = []
    for cluster in split_clusters(text):
        if units and not _may_break(units[-1][-1], cluster[0]):
            units[-1] += cluster
        else:
            units.append(cluster)
    return units


def _may_break(before: str, after: str) -> bool:
    if after.isspace():
        return False
    if before.isspace():
        return True
    closing = unicodedata.category(after) in ("Pe", "Pf", "Po")
    opening = unicodedata.category(before) in ("Ps", "Pi")
    return (_is_wide(before) or _is_wide(after)) and not closing and not opening


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in ("W", "F")


def split_clusters(text: str) -> list[str]:
    """Characters with their combining marks, joined emoji in one piece."""
    clusters: list[str] = []
    for character in text:
        joined = clusters and clusters[-1].endswith(ZERO_WIDTH_JOINER)
        attached = character == ZERO_WIDTH_JOINER or unicodedata.category(character)[0] == "M"
        if clusters and (joined or attached or "\U0001f3fb" <= character <= "\U0001f3ff"):
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def find_fonts(texts: Iterable[str]) -> tuple[list[str], str]:
    """What the texts need beside `FONT`.

    Returns:
        Families of installed fonts, those first that are the easiest to read; and the characters that none has.
    """
    from matplotlib.font_manager import findfont, fontManager
    from matplotlib.ft2font import FT2Font

    missing = {c for text in texts for c in clean_text(text) if unicodedata.category(c) != "Cf"}
    missing -= set(map(chr, FT2Font(findfont(FONT)).get_charmap()))
    families: list[str] = []
    for entry in sorted(fontManager.ttflist, key=_preference):
        if not missing:
            break
        if entry.name == "Last Resort High-Efficiency":  # matplotlib's boxes: it claims every character
            continue
        found = missing & set(map(chr, FT2Font(entry.fname).get_charmap()))
        if found:
            families.append(entry.name)
            missing -= found
    return families, "".join(sorted(missing))


def _preference(entry: FontEntry) -> tuple[bool, bool, int, str]:
    """Upright sans-serif fonts of normal weight first."""
    sans = "sans" in entry.name.lower() or "gothic" in entry.name.lower()
    weight = entry.weight if isinstance(entry.weight, int) else 400
    return entry.style != "normal", not sans, abs(weight - 400), entry.name
