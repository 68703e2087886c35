"""The pictures of a model card: captions that were scored, and the curves of the training.

Both are drawn on an opaque light panel with rounded corners, so that they read on light and dark pages alike. Drawing
goes through matplotlib's own canvas, without pyplot: nothing global is touched, and no display is needed.
"""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.card.text_layout import Typesetter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from datasets import Dataset
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

WIDTH = 1800
"""Pixels across a picture of full width: twice the text column of a card, for screens of high density."""

MARGIN, GAP = 40, 50
COLUMN = (WIDTH - 2 * MARGIN - 2 * GAP) // 3
PICTURE_HEIGHT = COLUMN * 3 // 4
MOST_REFERENCES = 5

INK, GREY, LINE, PANEL, LETTERBOX = "#1f2328", "#59636e", "#d1d9e0", "#ffffff", "#f0f3f6"
TRAINING, EVALUATION, SCORE = "#0969da", "#bc4c00", "#1a7f37"
TITLE_COLOURS = {"best": "#1a7f37", "median": "#0969da", "worst": "#bc4c00"}

SAMPLE_CURVES = {
    "reward": "Reward of samples",
    "kl": "KL from the start, nats a caption",
    "caption_length": "Words of a sample",
    "distinct_words": "Different words, share",
    "repeated_ngrams": "Repeated 4-grams, share",
    "bad_endings": "Bad endings, share",
}
"""What self-critical training logs of its samples, two curves a row below the losses."""

SCORE_LABELS = {
    "vqa_accuracy": "VQA accuracy",
    "reciprocal_rank": "Reciprocal rank",
    "cider": "CIDEr",
    "bleu_4": "BLEU-4",
    "spice": "SPICE",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "exact_match": "Exact match",
    "bleu_3": "BLEU-3",
    "bleu_2": "BLEU-2",
    "bleu_1": "BLEU-1",
    "recall_mean": "Mean recall",
    **{f"text_recall_{rank}": f"Text recall at {rank}" for rank in (1, 5, 10)},
    **{f"image_recall_{rank}": f"Image recall at {rank}" for rank in (1, 5, 10)},
}
"""Names of scores as people write them; the first that a run has ranks its captions and is drawn as a curve."""


@dataclass(frozen=True)
class Sample:
    """A picture that was captioned, and how well.

    Attributes:
        title: `"best"`, `"median"` or `"worst"`.
        image: The picture.
        caption: What the model says.
        references: What people say.
        score: The score that the caption was ranked by, as text (`"CIDEr 1.234"`); empty where it was not ranked.
    """

    title: str
    image: Image
    caption: str
    references: Sequence[str]
    score: str


def ranking_score(predictions: Sequence[Mapping[str, Any]]) -> str | None:
    """The score that captions are ranked by: CIDEr, or the next best that each image has; None where there is none."""
    return next((name for name in SCORE_LABELS if all(name in each["scores"] for each in predictions)), None)


def choose_samples(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The best, the median and the worst of scored captions by CIDEr, so that nobody is fooled by picked ones.

    Args:
        predictions: Lines of `predictions.jsonl`.

    Returns:
        Predictions by title; of two images there is no median, and one is the best.
    """
    name = ranking_score(predictions)
    ranked = sorted(predictions, key=lambda each: -each["scores"][name]) if name else list(predictions)
    places = {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}
    taken: dict[int, str] = {}
    for title in ("best", "worst", "median"):
        taken.setdefault(places[title], title)
    return {title: ranked[place] for place, title in sorted(taken.items()) if ranked}


def load_samples(predictions: Sequence[Mapping[str, Any]], rows: Dataset, key: str = "image_id") -> list[Sample]:
    """The samples that `choose_samples` names, with their pictures.

    Args:
        predictions: Lines of `predictions.jsonl`.
        rows: The split that they were made for, as `load_split` gives it.
        key: The column that names rows in predictions.

    Raises:
        BadImageError: A picture cannot be read any more.
    """
    from blip_recipe.data.images import open_image

    name = ranking_score(predictions)
    row_numbers = {name: row for row, name in enumerate(rows[key])}
    return [
        Sample(
            title,
            open_image(rows[row_numbers[each[key]]]["image"]),
            each["caption"],
            each["references"],
            f"{SCORE_LABELS[name]} {each['scores'][name]:.3f}" if name else "",
        )
        for title, each in choose_samples(predictions).items()
    ]


def draw_samples(samples: Sequence[Sample], path: Path) -> None:
    """Draw captioned pictures side by side, each with its caption and references in whatever script, as a PNG.

    Three samples fill `WIDTH`; fewer make a narrower picture. Its height follows the longest text.
    """
    texts = [text for sample in samples for text in (sample.caption, *sample.references)]
    with _plain_style():
        typesetter = Typesetter(texts)
        blocks = [_lay_out(sample, typesetter) for sample in samples]
        height = math.ceil(max(bottom for _, bottom in blocks)) + MARGIN
        width = 2 * MARGIN + len(samples) * COLUMN + (len(samples) - 1) * GAP
        figure, axes = _panel(width, height)
        for column, (sample, (lines, _)) in enumerate(zip(samples, blocks, strict=True)):
            left = MARGIN + column * (COLUMN + GAP)
            _draw_picture(axes, sample.image, left, MARGIN + 52)
            for line in lines:
                typesetter.draw(axes, line, left, COLUMN)
        _save(figure, path)


def draw_training_curves(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the losses and, beside them, the score of the evaluation split over the steps of a training, as a PNG.

    Args:
        log_history: Trainer's, with `step` and any of `loss`, `eval_loss`, `eval_cider` an entry. A run so short that
            it logged no `loss` has the mean of the run at its end (`train_loss`). Self-critical training adds rows.
        path: The file.
    """
    curves = {
        "training": _points(log_history, "loss") or _points(log_history, "train_loss"),
        "evaluation": _points(log_history, "eval_loss"),
    }
    score = next((name for name in SCORE_LABELS if _points(log_history, f"eval_{name}")), None)
    sampled = [name for name in SAMPLE_CURVES if _points(log_history, name)]
    rows = 1 + math.ceil(len(sampled) / 2)
    with _plain_style():
        figure, _ = _panel(WIDTH, 640 * rows)
        columns = 2 if score else 1
        last_step = max((entry["step"] for entry in log_history), default=1)
        for number, name in enumerate(sampled):
            place = {"row": 1 + number // 2, "rows": rows}
            axes = _curve_axes(figure, number % 2, 2, SAMPLE_CURVES[name], last_step, **place)
            _draw_curve(axes, _points(log_history, name), name, TRAINING)
        axes = _curve_axes(figure, 0, columns, "Loss", last_step, rows=rows)
        for name, colour in (("training", TRAINING), ("evaluation", EVALUATION)):
            if curves[name]:
                _draw_curve(axes, curves[name], name, colour)
        if any(curves.values()):
            axes.legend(frameon=False, labelcolor=INK, fontsize=24)
        if score:
            title = f"{SCORE_LABELS[score]} on the evaluation split"
            axes = _curve_axes(figure, 1, columns, title, last_step, rows=rows)
            points = _points(log_history, f"eval_{score}")
            _draw_curve(axes, points, SCORE_LABELS[score], SCORE)
            axes.set_ylim(0, 1.1 * max(value for _, value in points) or 1)
        _save(figure, path)


@contextmanager
def _plain_style() -> Iterator[None]:
    """matplotlib's own style, whatever a `matplotlibrc` of the user says, and theirs again afterwards."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        # The typesetter names all characters that no font has in one message.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _panel(width: int, height: int) -> tuple[Figure, Axes]:
    """A light panel of `width` x `height` pixels, whose points are pixels, counted from the top left corner."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    box = FancyBboxPatch(
        (2, 2), width - 4, height - 4, boxstyle="round,pad=0,rounding_size=20", fc=PANEL, ec=LINE, lw=2
    )
    axes.add_patch(box)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No version of matplotlib in the file: the same run gives the same bytes.
    figure.savefig(path, format="png", dpi=72, metadata={"Software": None})


def _lay_out(sample: Sample, typesetter: Typesetter) -> tuple[list[Any], float]:
    """The lines of text of a sample's column, and where the last one ends."""
    title_colour = TITLE_COLOURS.get(sample.title, INK)
    top = float(MARGIN)
    lines, _ = typesetter.lay_out(sample.title.capitalize(), top, COLUMN, size=28, colour=title_colour, bold=True)
    score, _ = typesetter.lay_out(sample.score, top, COLUMN, size=26, colour=GREY, align="right")
    top += 52 + PICTURE_HEIGHT + 22
    caption, top = typesetter.lay_out(
        sample.caption or "(no caption)", top, COLUMN, size=31, colour=INK, bold=True, max_lines=8
    )
    top += 18
    lines += score + caption
    for reference in sample.references[:MOST_REFERENCES]:
        laid, top = typesetter.lay_out(reference, top, COLUMN, size=25, colour=GREY, max_lines=3)
        lines += laid
        top += 8
    more = len(sample.references) - MOST_REFERENCES
    if more > 0:
        laid, top = typesetter.lay_out(f"and {more} more references", top, COLUMN, size=22, colour=GREY)
        lines += laid
    return lines, top


def _draw_picture(axes: Axes, image: Image, left: float, top: float) -> None:
    """The whole picture, as large as it fits into its place, on a quiet ground."""
    import numpy as np
    from matplotlib.patches import FancyBboxPatch
    from PIL.Image import Resampling

    scale = min(COLUMN / image.width, PICTURE_HEIGHT / image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = np.asarray(image.convert("RGB").resize((width, height), Resampling.LANCZOS))
    frame = FancyBboxPatch(
        (left, top), COLUMN, PICTURE_HEIGHT, boxstyle="round,pad=0,rounding_size=12", fc=LETTERBOX, ec="none"
    )
    axes.add_patch(frame)
    x, y = left + (COLUMN - width) // 2, top + (PICTURE_HEIGHT - height) // 2
    drawn = axes.imshow(pixels, extent=(x, x + width, y + height, y), aspect="auto", interpolation="nearest", zorder=2)
    drawn.set_clip_path(frame)


def _points(log_history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of each entry that has the value."""
    return [(entry["step"], entry[key]) for entry in log_history if key in entry]


def _curve_axes(
    figure: Figure, column: int, columns: int, title: str, last_step: int, *, row: int = 0, rows: int = 1
) -> Axes:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    left, right = 0.065 + column * 0.49, 0.97 if column == columns - 1 else 0.47
    axes = figure.add_axes((left, (rows - 1 - row + 0.165) / rows, right - left, 0.68 / rows), facecolor="none")
    axes.set_title(title, loc="left", color=INK, fontsize=28, fontweight="bold", pad=18)
    axes.set_xlabel("step", color=GREY, fontsize=24, labelpad=10)
    axes.tick_params(colors=GREY, labelsize=22, length=0, pad=8)
    axes.grid(color=LINE, linewidth=1.5, axis="y")
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=LINE, linewidth=2)
    axes.set_xlim(0, 1.03 * last_step)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_axisbelow(True)
    return axes


def _draw_curve(axes: Axes, points: list[tuple[float, float]], label: str, colour: str) -> None:
    """A line, with markers where points are few; where they are many, a running mean on top of a pale one."""
    steps, values = zip(*points, strict=True)
    reach = len(points) // 80
    if reach:
        axes.plot(steps, values, color=colour, linewidth=1.5, alpha=0.3)
        windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
        values = tuple(math.fsum(window) / len(window) for window in windows)
    marker = "o" if len(points) <= 20 else ""
    axes.plot(steps, values, color=colour, linewidth=4, marker=marker, markersize=11, label=label, clip_on=False)
