"""Keep numbers of each image from which the scores of any sample of images follow.

A score of a whole set is a function of sums over its images: CIDEr is the sum of the images' values divided by their
number, and BLEU follows from sums of matches and lengths. A resample of the images only needs new sums.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class Statistics(NamedTuple):
    """The numbers of one metric.

    Attributes:
        names: Names of the scores.
        rows: Numbers of each image `(images, columns)`.
        scores: Compute the scores `(..., names)` from sums of rows `(..., columns)`.
        is_share: Whether the score is a share of right images, texts or answers. An image may be right in part.
    """

    names: tuple[str, ...]
    rows: Numbers
    scores: Callable[[Numbers], Numbers]
    is_share: bool = False

    def of_set(self) -> dict[str, float]:
        """The scores of all images."""
        return dict(zip(self.names, self.scores(self.rows.sum(0)).tolist(), strict=True))


def mean_statistics(
    name: str, values: Sequence[float], counts: Sequence[float] | None = None, *, is_share: bool = False
) -> Statistics:
    """The statistics of a score that is a mean of `values`; with `counts`, each value is a sum of that many."""
    rows = np.column_stack([np.asarray(values, float), np.ones(len(values)) if counts is None else counts])
    return Statistics((name,), rows, ratio, is_share)


def ratio(sums: Numbers) -> Numbers:
    """The first column divided by the second one."""
    return sums[..., :1] / sums[..., 1:]


def mean_of_scores(parts: Sequence[Statistics], name: str) -> Statistics:
    """The statistics of the mean of scores of `mean_statistics`, such as the mean recall."""

    def scores(sums: Numbers) -> Numbers:
        pairs = sums.reshape(*sums.shape[:-1], len(parts), 2)
        return (pairs[..., 0] / pairs[..., 1]).mean(-1, keepdims=True)

    return Statistics((name,), np.hstack([each.rows for each in parts]), scores)


def is_mean_of_images(statistics: Statistics) -> bool:
    """Whether the score of a set is the mean of those of its images."""
    return statistics.scores is ratio and bool((statistics.rows[:, 1] == 1).all())


def rename(statistics: Statistics, end: str) -> Statistics:
    """Add an end to the names of the scores, such as the name of a group."""
    return statistics._replace(names=tuple(f"{name}_{end}" for name in statistics.names))


def merge_rows(statistics: Statistics, owners: Sequence[Hashable]) -> Statistics:
    """Sum the rows with the same owner, such as the questions about one image."""
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    rows = np.zeros((len(numbers), statistics.rows.shape[1]))
    np.add.at(rows, [numbers[owner] for owner in owners], statistics.rows)
    return statistics._replace(rows=rows)
