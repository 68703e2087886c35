"""Test whether two sets of texts for the same images differ in their scores.

Paired approximate randomisation (Noreen, 1989; Riezler and Maxwell, 2005, https://aclanthology.org/W05-0908): the texts
of each image change sides with a probability of one half. The p-value is the share of such shuffles whose difference is
at least as large as the real one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from blip_recipe.metrics.intervals import (
    CHUNK,
    RESAMPLES,
    SEED,
    Interval,
    bca_interval,
    leave_one_out,
    resampled_sums,
    score_intervals,
)
from blip_recipe.metrics.statistics import Numbers, Statistics

P_VALUE = "p_value"
"""End of the name of a p-value among scores."""

SIGNIFICANT = 0.05
"""The p-value below which a difference is hardly by chance."""

ROUNDING = 1e-12
"""Differences of scores that are equal but for the order of additions."""


class Difference(NamedTuple):
    """The scores of two sets of texts for the same images.

    Attributes:
        first, second: The scores.
        first_interval, second_interval: Their 95% intervals.
        change: The second score minus the first one.
        interval: The 95% interval of the change.
        p_value: Two-sided p-value of the change.
    """

    first: float
    second: float
    first_interval: Interval
    second_interval: Interval
    change: float
    interval: Interval
    p_value: float


def compare_scores(
    first: Sequence[Statistics], second: Sequence[Statistics], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Difference]:
    """Compare the scores that two sets of texts both have. Their rows must be those of the same images.

    Args:
        first, second: The statistics of each metric.
        resamples: Number of resamples for intervals, and of shuffles for the test.
        seed: Seed of both.
    """
    pairs = _pair(first, second)
    if not pairs:
        return {}
    lefts, rights = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    p_values = paired_p_values(lefts, rights, resamples=resamples, seed=seed)
    intervals = [score_intervals(each, resamples=resamples, seed=seed) for each in (lefts, rights)]
    found: dict[str, Difference] = {}
    drawn = [resampled_sums(each, resamples, seed) for each in (lefts, rights)]
    for left, right, sums, others in zip(lefts, rights, *drawn, strict=True):
        scores = [each.scores(each.rows.sum(0)) for each in (left, right)]
        changes = right.scores(others) - left.scores(sums)
        left_out = leave_one_out(right) - leave_one_out(left)
        for column, name in enumerate(left.names):
            before, after = float(scores[0][column]), float(scores[1][column])
            interval = bca_interval(after - before, changes[:, column], left_out[:, column])
            own = intervals[0][name], intervals[1][name]
            found[name] = Difference(before, after, *own, after - before, interval, p_values[name])
    return found


def paired_p_values(
    first: Sequence[Statistics], second: Sequence[Statistics], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, float]:
    """The two-sided p-value of each score that both have, by name; none without resamples."""
    pairs = _pair(first, second)
    if not pairs or not resamples:
        return {}
    moves = np.hstack([right.rows - left.rows for left, right in pairs])
    moved = np.vstack([swaps @ moves for swaps in draw_swaps(len(moves), resamples, seed)])
    ends = np.cumsum([left.rows.shape[1] for left, _ in pairs])
    found: dict[str, float] = {}
    for (left, right), move in zip(pairs, np.split(moved, ends[:-1], axis=1), strict=True):
        sums, others = left.rows.sum(0), right.rows.sum(0)
        real = np.abs(left.scores(sums) - right.scores(others))
        shuffled = np.abs(left.scores(sums + move) - right.scores(others - move))
        # The real assignment is one of the shuffles, so that a p-value is never 0.
        reached = (shuffled >= real - ROUNDING).sum(0)
        found |= dict(zip(left.names, ((reached + 1) / (resamples + 1)).tolist(), strict=True))
    return found


def draw_swaps(images: int, resamples: int, seed: int) -> Iterator[Numbers]:
    """Which images change sides in each shuffle, some shuffles at a time `(part of resamples, images)`."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // images)
    for start in range(0, resamples, step):
        yield generator.integers(2, size=(min(step, resamples - start), images)).astype(float)


def _pair(first: Sequence[Statistics], second: Sequence[Statistics]) -> list[tuple[Statistics, Statistics]]:
    """The statistics of the scores that both sides have."""
    others = {each.names: each for each in second}
    return [(each, others[each.names]) for each in first if each.names in others]
