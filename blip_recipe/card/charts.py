"""Compute the shapes of charts in pages: histograms of scores, and curves of a training.

The macros of `charts.html.jinja` draw them as SVG, so that a page needs no script and no library for its charts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 420, 180
"""Size of a chart in units of its own."""

LEFT, RIGHT, TOP, BOTTOM = 10.0, 410.0, 20.0, 150.0
"""The part of a histogram where bars are drawn."""

CURVE_LEFT = 46.0
"""The part of a curve's chart left of its lines, for numbers."""

MAX_POINTS = 300
"""Maximum points of a curve. More are averaged in groups."""

MAX_MARKED = 20
"""Maximum points of a curve whose points are marked."""


class Bar(NamedTuple):
    """A bar: its rectangle, its class in the style sheet, and its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


class Histogram(NamedTuple):
    """A histogram from `low` to `high`.

    Attributes:
        label: The name of the chart for screen readers.
        low, high: The range of values.
        bars: The bars of all series.
        highest: The count of the highest bar.
        mark: The position of a vertical line, and its value.
    """

    label: str
    low: float
    high: float
    bars: list[Bar]
    highest: int
    mark: tuple[float, str] | None = None


class Series(NamedTuple):
    """The counts of a histogram's bins: its name in tooltips, and the class of its bars.

    `kind` is the class, or a function that returns the class of the bar that starts at a value.
    """

    name: str
    counts: Sequence[int]
    kind: str | Callable[[float], str]


def build_histogram(
    label: str, series: Sequence[Series], low: float = 0.0, high: float = 1.0, mark: float | None = None
) -> Histogram:
    """Compute the bars of several series, side by side in each bin. Heights are relative to the highest bar."""
    bins = len(series[0].counts)
    highest = max(1, *(max(each.counts) for each in series))
    slot = (RIGHT - LEFT) / bins
    width = (slot - 1) / len(series)
    bars = []
    for place, (name, counts, kind) in enumerate(series):
        for number, count in enumerate(counts):
            start, end = (low + (high - low) * edge / bins for edge in (number, number + 1))
            height = (BOTTOM - TOP) * count / highest
            title = f"{start:.2f} to {end:.2f}{f', {name}' if name else ''}: {count:,}"
            x = LEFT + slot * number + 0.5 + width * place
            x, y, wide, tall = (round(value, 1) for value in (x, BOTTOM - height, width, height))
            bars.append(Bar(x, y, wide, tall, kind if isinstance(kind, str) else kind(start), title))
    marked = None if mark is None else (round(_scale(mark, low, high, LEFT, RIGHT), 1), f"{mark:g}")
    return Histogram(label, low, high, bars, highest, marked)


def count_values(values: Sequence[float | None], low: float, high: float, bins: int) -> list[int]:
    """Count values from `low` to `high` in bins of equal width; the last bin includes `high`."""
    counts = [0] * bins
    for value in values:
        if value is not None and low <= value <= high:
            counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    return counts


def nice_range(values: Sequence[float | None]) -> tuple[float, float]:
    """The range of a histogram: 0 to 1, or to the next whole number beyond the values."""
    known = [value for value in values if value is not None]
    return min(0.0, *map(math.floor, known), 0.0), max(1.0, *map(math.ceil, known), 1.0)


class Line(NamedTuple):
    """A line: its name, its class in the style sheet, its points in SVG's form, and the marked points with tooltips."""

    name: str
    kind: str
    points: str
    marks: list[tuple[float, float, str]]


class Curves(NamedTuple):
    """Curves over the steps of a training, with the texts at the ends of the axes."""

    label: str
    lines: list[Line]
    low: str
    high: str
    last_step: str


def build_curves(label: str, series: Mapping[str, tuple[str, Sequence[tuple[float, float]]]]) -> Curves | None:
    """Compute the lines of a chart; None without any point.

    Args:
        label: The name of the chart.
        series: For each name of a line its class in the style sheet, and its points (step, value).
    """
    known = {name: (kind, _thin(points)) for name, (kind, points) in series.items() if points}
    values = [value for _, points in known.values() for _, value in points]
    if not values:
        return None
    last = max(1.0, *(step for _, points in known.values() for step, _ in points))
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    lines = []
    for name, (kind, points) in known.items():
        at = [
            (
                round(_scale(step, 0, last, CURVE_LEFT, RIGHT), 1),
                round(_scale(value, low, high, BOTTOM, TOP), 1),
                f"{name}, step {step:,.0f}: {value:.4g}",
            )
            for step, value in points
        ]
        drawn = " ".join(f"{x:g},{y:g}" for x, y, _ in at)
        lines.append(Line(name, kind, drawn, at if len(at) <= MAX_MARKED else []))
    return Curves(label, lines, f"{low:.3g}", f"{high:.3g}", f"{last:,.0f}")


def curve_points(log_history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Pairs (step, value) of the entries of Trainer's log history with a finite value."""
    return [(entry["step"], entry[key]) for entry in log_history if key in entry and math.isfinite(entry[key])]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: the means of neighbours."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)
