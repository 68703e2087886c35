"""Bootstrap intervals of scores (Efron, 1987, https://doi.org/10.1080/01621459.1987.10478410).

Images are drawn with replacement, as many as there are, and the score is computed again, many times. A 95% interval
lies between the 2.5th and the 97.5th percentile of these scores, corrected for bias and skewness (BCa) and for few
images. `python -m benchmarks.intervals` compares this kind of interval with others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.statistics import Numbers, Statistics

Interval = tuple[float, float]

ENDS = ("low", "high")
"""Ends of the names of an interval's ends."""

RESAMPLES = 1000
"""Number of resamples, unless another one is given."""

MIN_RESAMPLES = 100

LEVEL = 0.95
"""Share of evaluations whose interval holds the true score."""

SEED = 42
"""Seed of the resamples, unless another one is given: that of training arguments."""

CHUNK = 4_000_000
"""Numbers to draw at a time, so that memory stays small for any number of images."""

NORMAL = NormalDist()


def check_resamples(resamples: int, name: str = "resamples", *, needed: bool = False) -> None:
    """Raise a `RecipeError` unless there are enough resamples for an interval, or none if they are not `needed`."""
    if resamples < MIN_RESAMPLES and (resamples or needed):
        none = "" if needed else ", or 0 for no intervals"
        raise RecipeError(f"{name} is {resamples}: expected at least {MIN_RESAMPLES}{none}.")


def score_intervals(
    statistics: Sequence[Statistics], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Interval]:
    """Compute 95% intervals of scores of the same images.

    Args:
        statistics: The statistics of each metric.
        resamples: Number of resamples; 0 returns no intervals.
        seed: Seed of the resamples.

    Returns:
        The lower and the upper end by score name.
    """
    if not resamples or not statistics:
        return {}
    found: dict[str, Interval] = {}
    for each, sums in zip(statistics, resampled_sums(statistics, resamples, seed), strict=True):
        if (share := share_of(each)) is not None:
            found[each.names[0]] = wilson_interval(share, len(each.rows))
            continue
        point, drawn, left_out = each.scores(each.rows.sum(0)), each.scores(sums), leave_one_out(each)
        for column, name in enumerate(each.names):
            found[name] = bca_interval(float(point[column]), drawn[:, column], left_out[:, column])
    return found


def resampled_sums(statistics: Sequence[Statistics], resamples: int, seed: int) -> list[Numbers]:
    """The sums of the rows of each statistics in each resample `(resamples, columns)`; resamples are the same for all.

    How often each image is drawn is one matrix, so that all sums are one product of matrices.
    """
    together = np.hstack([each.rows for each in statistics])
    sums = np.vstack([counts @ together for counts in draw_counts(len(together), resamples, seed)])
    ends = np.cumsum([each.rows.shape[1] for each in statistics])
    return np.split(sums, ends[:-1], axis=1)


def draw_counts(images: int, resamples: int, seed: int) -> Iterator[Numbers]:
    """How often each image is drawn in each resample, some resamples at a time `(part of resamples, images)`."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(images, size=(count, images)) + np.arange(count)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images).astype(float)


def leave_one_out(statistics: Statistics) -> Numbers:
    """The scores without each one of the images `(images, names)`."""
    if len(statistics.rows) == 1:
        return statistics.scores(statistics.rows)
    return statistics.scores(statistics.rows.sum(0) - statistics.rows)


def bca_interval(point: float, drawn: Numbers, left_out: Numbers) -> Interval:
    """The bias-corrected and accelerated interval (Efron, 1987, section 4), widened for few images.

    Args:
        point: The score of the set.
        drawn: The scores of resamples `(resamples,)`.
        left_out: The scores without each one of the images `(images,)`.
    """
    # Half of the ties count as below: scores of few images have few different values.
    below = ((drawn < point).mean() + (drawn <= point).mean()) / 2
    spread = left_out.mean() - left_out
    squares = float((spread**2).sum())
    if not 0 < below < 1 or squares == 0:
        return percentile_interval(drawn)
    bias = NORMAL.inv_cdf(float(below))
    acceleration = float((spread**3).sum()) / (6 * squares**1.5)
    ends = []
    for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        shifted = bias + NORMAL.inv_cdf(level) * small_sample_factor(len(left_out))
        ends.append(NORMAL.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def percentile_interval(drawn: Numbers) -> Interval:
    """The interval without corrections, where all resamples have scores on one side or the same score."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def small_sample_factor(images: int) -> float:
    """The factor by which quantiles are widened for few images (Hesterberg, 2015, arXiv 1411.5279, section 5.3.1).

    A bootstrap of n images is too narrow by the square root of (n - 1) / n, and uses normal quantiles instead of
    Student's (Abramowitz and Stegun, 26.7.5).
    """
    if images < 2:
        return 1.0
    z, freedom = NORMAL.inv_cdf((1 + LEVEL) / 2), images - 1
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    student = z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
    return math.sqrt(images / freedom) * student / z


def share_of(statistics: Statistics) -> float | None:
    """The share of right images, if the score is one; None if images have other values than right and wrong."""
    if not statistics.is_share:
        return None
    right, counts = statistics.rows.T
    share = float(right.sum() / counts.sum())
    is_share = bool(((right == 0) | (right == counts)).all()) and (share in (0, 1) or bool((counts == counts[0]).all()))
    return share if is_share else None


def wilson_interval(share: float, images: int) -> Interval:
    """The score interval of a share (Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953).

    Resamples of images that are all right are all right, too. Their interval would have no width.
    """
    square = NORMAL.inv_cdf((1 + LEVEL) / 2) ** 2
    middle = share + square / (2 * images)
    half = math.sqrt(square * (share * (1 - share) + square / (4 * images)) / images)
    low, high = ((middle + sign * half) / (1 + square / images) for sign in (-1, 1))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def interval_scores(intervals: dict[str, Interval]) -> dict[str, float]:
    """The ends of intervals as scores: `cider_low` and `cider_high`."""
    return {f"{name}_{end}": value for name, ends in intervals.items() for end, value in zip(ENDS, ends, strict=True)}


def is_end(name: str, scores: Mapping[str, float]) -> bool:
    """Whether a name among `scores` is that of an interval's end, or of a p-value, of another one."""
    score = name.removesuffix("_p_value").removesuffix("_low").removesuffix("_high")
    return score != name and score in scores
