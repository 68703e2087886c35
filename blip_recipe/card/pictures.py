"""Draw the pictures of a model card: captioned samples and training curves.

Curves are drawn on an opaque light panel, readable on light and dark pages. matplotlib is used without pyplot, so no
global state changes and no display is needed.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from blip_recipe.card.charts import curve_points
from blip_recipe.card.thumbnails import encode_jpeg
from blip_recipe.data.images import open_image
from blip_recipe.data.storage import write_atomically
from blip_recipe.metrics.scores import LOWER_IS_BETTER, SELF_RANKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from datasets import Dataset
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLE_FILES = {title: f"samples/{title}.jpg" for title in ("best", "median", "worst")}
"""Picture files of the samples in the output directory, by title."""

SAMPLE_SIZE = 384
"""Maximum longer side of a sample's picture in pixels."""

WIDTH = 1800
"""Width of the curves in pixels: twice the text column of a card, for high-density screens."""

INK, GREY, LINE, PANEL = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
TRAINING, EVALUATION, SCORE = "#0969da", "#bc4c00", "#1a7f37"

SAMPLE_CURVES = {
    "reward": "Reward of samples",
    "kl": "KL from the start, nats a caption",
    "caption_length": "Words of a sample",
    "distinct_words": "Different words, share",
    "repeated_ngrams": "Repeated 4-grams, share",
    "bad_endings": "Bad endings, share",
}
"""Labels of the values that self-critical training logs. They are drawn below the losses, two per row."""

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
    "ref_clip_score": "RefCLIPScore",
    "clip_score": "CLIPScore",
    "itm_score": "Matching probability",
    **{f"self_recall_{rank}": f"Self-retrieval recall at {rank}" for rank in SELF_RANKS},
    "distinct_1": "Different words, share of all",
    "distinct_2": "Different word pairs, share of all",
    "vocabulary": "Different words, number",
    "unique": "Different captions, share",
    "novel": "Captions not among those of training, share",
    "caption_length": "Words a caption",
    "chair_i": "Hallucinated objects, share (CHAIR-i)",
    "chair_s": "Captions with a hallucinated object, share (CHAIR-s)",
}
"""Labels of scores. The first one that a run has ranks its captions and is drawn as a curve."""


def ranking_score(predictions: Sequence[Mapping[str, Any]]) -> str | None:
    """The score that ranks captions: the first of `SCORE_LABELS` that all images have, best if high, or None."""
    names = (name for name in SCORE_LABELS if name not in LOWER_IS_BETTER)
    return next((name for name in names if all(name in each["scores"] for each in predictions)), None)


def choose_samples(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Choose the best, the median and the worst caption by `ranking_score`, instead of hand-picked ones.

    Args:
        predictions: Lines of `predictions.jsonl`.

    Returns:
        Predictions by title. Two images have no median, one image has only a best one.
    """
    name = ranking_score(predictions)
    ranked = sorted(predictions, key=lambda each: -each["scores"][name]) if name else list(predictions)
    places = {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}
    taken: dict[int, str] = {}
    for title in ("best", "worst", "median"):
        taken.setdefault(places[title], title)
    return {title: ranked[place] for place, title in sorted(taken.items()) if ranked}


def write_samples(
    predictions: Sequence[Mapping[str, Any]], rows: Dataset, output_dir: Path, key: str = "image_id"
) -> None:
    """Write the pictures of the samples from `choose_samples`, and delete those of an earlier run.

    Args:
        predictions: Lines of `predictions.jsonl`.
        rows: The split of the predictions, from `load_split`.
        output_dir: The directory of `SAMPLE_FILES`.
        key: The column with the id of a row in predictions.

    Raises:
        BadImageError: A picture cannot be read.
    """
    for file in SAMPLE_FILES.values():
        (output_dir / file).unlink(missing_ok=True)
    row_numbers = {name: row for row, name in enumerate(rows[key])}
    for title, prediction in choose_samples(predictions).items():
        image = open_image(rows[row_numbers[prediction[key]]]["image"])
        write_atomically(output_dir / SAMPLE_FILES[title], encode_jpeg(image, SAMPLE_SIZE, quality=90), flush=True)


def draw_training_curves(log_history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the losses and the evaluation score over the training steps as a PNG.

    Args:
        log_history: Trainer's log history: entries with `step` and any of `loss`, `eval_loss` and scores such as
            `eval_cider`. Without a `loss`, as in a very short run, the mean `train_loss` is drawn. Self-critical
            training adds rows.
        path: The file.
    """
    curves = {
        "training": curve_points(log_history, "loss") or curve_points(log_history, "train_loss"),
        "evaluation": curve_points(log_history, "eval_loss"),
    }
    score = next((name for name in SCORE_LABELS if curve_points(log_history, f"eval_{name}")), None)
    sampled = [name for name in SAMPLE_CURVES if curve_points(log_history, name)]
    rows = 1 + math.ceil(len(sampled) / 2)
    with _plain_style():
        figure = _panel(WIDTH, 640 * rows)
        columns = 2 if score else 1
        last_step = max((entry["step"] for entry in log_history), default=1)
        for number, name in enumerate(sampled):
            place = {"row": 1 + number // 2, "rows": rows}
            axes = _curve_axes(figure, number % 2, 2, SAMPLE_CURVES[name], last_step, **place)
            _draw_curve(axes, curve_points(log_history, name), name, TRAINING)
        axes = _curve_axes(figure, 0, columns, "Loss", last_step, rows=rows)
        for name, colour in (("training", TRAINING), ("evaluation", EVALUATION)):
            if curves[name]:
                _draw_curve(axes, curves[name], name, colour)
        if any(curves.values()):
            axes.legend(frameon=False, labelcolor=INK, fontsize=24)
        if score:
            title = f"{SCORE_LABELS[score]} on the evaluation split"
            axes = _curve_axes(figure, 1, columns, title, last_step, rows=rows)
            points = curve_points(log_history, f"eval_{score}")
            _draw_curve(axes, points, SCORE_LABELS[score], SCORE)
            axes.set_ylim(0, 1.1 * max(value for _, value in points) or 1)
        _save(figure, path)


@contextmanager
def _plain_style() -> Iterator[None]:
    """Use matplotlib's default style instead of the user's `matplotlibrc`, and restore it afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _panel(width: int, height: int) -> Figure:
    """Create a figure of `width` x `height` pixels with a light panel."""
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
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Leave out matplotlib's version, so the same run writes the same bytes.
    figure.savefig(path, format="png", dpi=72, metadata={"Software": None})


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
    """Draw a line: with markers for few points, with a running mean over a pale line for many."""
    steps, values = zip(*points, strict=True)
    reach = len(points) // 80
    if reach:
        axes.plot(steps, values, color=colour, linewidth=1.5, alpha=0.3)
        windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
        values = tuple(math.fsum(window) / len(window) for window in windows)
    marker = "o" if len(points) <= 20 else ""
    axes.plot(steps, values, color=colour, linewidth=4, marker=marker, markersize=11, label=label, clip_on=False)
