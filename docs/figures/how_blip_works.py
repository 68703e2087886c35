"""Draw how_blip_works.svg, the figure of BLIP's three modes.

python docs/figures/how_blip_works.py

The figure brings its own light background, so that it is readable on light and dark pages.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 980, 660
COLUMN = 212
UNIMODAL, VISION, ENCODER, DECODER = 24, 264, 504, 744
"""Left edges of the columns."""

GREEN, YELLOW, BLUE, RED, PURPLE, GREY = "#cde8cf", "#ffe9b8", "#cfe0fb", "#f9d2d0", "#e3d4f8", "#eeeeee"
INK, LINE = "#1b1b1f", "#55555f"
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"


def text(x: float, y: float, words: str, *, size: int = 14, bold: bool = False, colour: str = INK) -> str:
    """Centred text."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{weight} fill="{colour}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, *lines: str, size: int = 14) -> str:
    """A rounded box with lines of text."""
    first = y + height / 2 + 5 - 8.5 * (len(lines) - 1)
    words = (text(x + width / 2, first + 17 * number, line, size=size) for number, line in enumerate(lines))
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" stroke="{LINE}"/>'
    return "\n".join([shape, *words])


def loss(x: float, width: float, name: str, meaning: str) -> str:
    """A loss, dark."""
    shape = f'<rect x="{x:g}" y="70" width="{width:g}" height="46" rx="23" fill="#38304f"/>'
    middle = x + width / 2
    return "\n".join(
        [
            shape,
            text(middle, 90, name, size=13, bold=True, colour="#ffffff"),
            text(middle, 107, meaning, size=12, colour="#ffffff"),
        ]
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line with a head."""
    return path(f"M{x1:g} {y1:g}L{x2:g} {y2:g}")


def path(steps: str) -> str:
    """A line with a head."""
    return f'<path d="{steps}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#head)"/>'


def tokens(x: float, y: float, *names: str, marked: str) -> str:
    """A row of tokens, the special one on white with a thick edge."""
    width = COLUMN / len(names)
    parts = []
    for number, name in enumerate(names):
        left = x + number * width + 1.5
        edge = f'stroke="{INK}" stroke-width="2"' if name == marked else f'stroke="{LINE}"'
        fill = "#ffffff" if name == marked else GREY
        parts.append(f'<rect x="{left:g}" y="{y:g}" width="{width - 3:g}" height="26" rx="4" fill="{fill}" {edge}/>')
        parts.append(text(left + width / 2 - 1.5, y + 18, name, size=12, bold=name == marked))
    return "\n".join(parts)


def stack(x: float, attention: str, colour: str, *, cross: bool) -> list[str]:
    """The layers of the text network in one mode, from the tokens up."""
    middle = x + COLUMN / 2
    frame = (
        f'<rect x="{x - 8}" y="252" width="{COLUMN + 16}" height="246" rx="12" fill="none" stroke="{LINE}" '
        'stroke-dasharray="5 4"/>'
    )
    parts = [
        frame,
        text(x + COLUMN - 22, 490, "× 12", size=12),
        arrow(middle, 528, middle, 474),
        box(x + 10, 424, COLUMN - 20, 48, colour, attention, "self-attention"),
        box(x + 10, 268, COLUMN - 20, 48, YELLOW, "feed-forward"),
        arrow(middle, 266, middle, 228),
    ]
    if cross:
        parts += [
            arrow(middle, 422, middle, 396),
            box(x + 10, 346, COLUMN - 20, 48, PURPLE, "cross-attention"),
            arrow(middle, 344, middle, 318),
        ]
    else:
        parts += [arrow(middle, 422, middle, 318), text(middle + 52, 372, "no image", size=12, colour=LINE)]
    return parts


def picture(x: float, y: float) -> str:
    """A drawn scene, cut into patches."""
    parts = [
        f'<rect x="{x}" y="{y}" width="72" height="72" fill="#ffffff" stroke="{LINE}"/>',
        f'<circle cx="{x + 22}" cy="{y + 24}" r="15" fill="#d9534f"/>',
        f'<rect x="{x + 42}" y="{y + 42}" width="20" height="20" fill="#4a7bd0"/>',
    ]
    for step in (18, 36, 54):
        parts.append(f'<path d="M{x + step} {y}v72M{x} {y + step}h72" stroke="{LINE}" stroke-width="0.7"/>')
    return "\n".join(parts)


def figure() -> str:
    """The whole figure as SVG."""
    middle = {each: each + COLUMN / 2 for each in (UNIMODAL, VISION, ENCODER, DECODER)}
    parts = [
        arrow(VISION + COLUMN - 10, 370, ENCODER + 8, 370),
        # On its way to the decoder the line hops over the encoder's arrow.
        path(f"M{VISION + COLUMN - 10} 412H{middle[ENCODER] - 6:g}a6 6 0 0 1 12 0H{DECODER - 14}V370H{DECODER + 8}"),
        text(middle[UNIMODAL], 32, "1  Unimodal encoder", size=14, bold=True),
        text(middle[UNIMODAL], 52, "reads the text alone", size=12),
        text(middle[VISION], 32, "Image encoder (ViT)", size=14, bold=True),
        text(middle[VISION], 52, "serves all three modes", size=12),
        text(middle[ENCODER], 32, "2  Image-grounded encoder", size=14, bold=True),
        text(middle[ENCODER], 52, "judges image and text together", size=12),
        text(middle[DECODER], 32, "3  Image-grounded decoder", size=14, bold=True),
        text(middle[DECODER], 52, "writes the text", size=12),
        loss(UNIMODAL, 2 * COLUMN + 28, "ITC: image-text contrast", "features of pairs are alike, of others not"),
        loss(ENCODER, COLUMN, "ITM: image-text matching", "do they belong together?"),
        loss(DECODER, COLUMN, "LM: language modelling", "which word comes next?"),
        *(arrow(each, 158, each, 120) for each in middle.values()),
        box(UNIMODAL + 10, 160, COLUMN - 20, 66, GREY, "projection of", "the state of [CLS]"),
        box(VISION + 10, 160, COLUMN - 20, 66, GREY, "projection of", "the image's first state"),
        box(ENCODER + 10, 160, COLUMN - 20, 66, GREY, "head of two classes on", "the state of [ENC]"),
        box(DECODER + 10, 160, COLUMN - 20, 66, GREY, "LM head on every state:", "a  red  circle  [SEP]"),
        *stack(UNIMODAL, "bidirectional", BLUE, cross=False),
        *stack(ENCODER, "bidirectional", BLUE, cross=True),
        *stack(DECODER, "causal", RED, cross=True),
        box(
            VISION + 10,
            268,
            COLUMN - 20,
            204,
            GREEN,
            "vision transformer",
            "",
            "image embeddings:",
            "one state a patch",
        ),
        arrow(middle[VISION], 266, middle[VISION], 228),
        arrow(middle[VISION], 512, middle[VISION], 474),
        tokens(UNIMODAL, 530, "[CLS]", "a", "red", "circle", "[SEP]", marked="[CLS]"),
        tokens(ENCODER, 530, "[ENC]", "a", "red", "circle", "[SEP]", marked="[ENC]"),
        tokens(DECODER, 530, "[DEC]", "a", "red", "circle", marked="[DEC]"),
        picture(middle[VISION] - 36, 514),
        text(middle[UNIMODAL], 576, "text", size=12),
        text(middle[ENCODER], 576, "text", size=12),
        text(middle[DECODER], 576, "text so far", size=12),
        '<text x="24" y="622" font-size="13" font-weight="bold" text-anchor="start" fill="#1b1b1f">Same colour, same '
        "weights in pre-training:</text>",
    ]
    legend = [(BLUE, "modes 1 and 2"), (RED, "mode 3"), (PURPLE, "modes 2 and 3"), (YELLOW, "all modes")]
    for number, (colour, words) in enumerate(legend):
        x = 372 + 152 * number
        parts.append(f'<rect x="{x}" y="608" width="22" height="18" rx="4" fill="{colour}" stroke="{LINE}"/>')
        parts.append(
            f'<text x="{x + 30}" y="622" font-size="13" text-anchor="start" fill="{INK}">{escape(words)}</text>'
        )
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" \
height="{HEIGHT}" font-family="{FONTS}" text-anchor="middle" role="img" aria-labelledby="title description">
<title id="title">How BLIP works</title>
<desc id="description">One text network in three modes beside a vision transformer: the unimodal encoder (ITC), the \
image-grounded encoder (ITM) and the image-grounded decoder (LM).</desc>
<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker></defs>
<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="14" fill="#fcfcff" stroke="#c9c9d2"/>
{body}
</svg>
"""


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(figure(), encoding="utf-8")
