"""Mix data sets for training: how often the rows of each are seen in an epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from datasets import Dataset

# `datasets` is not imported, so that `--help` is fast.

PART_KEYS = (
    *("dataset_name", "dataset_config_name", "dataset_revision", "train_split", "max_train_samples"),
    *("image_column", "image_id_column", "image_root"),
    *("caption_column", "caption_lines", "caption_prefix", "caption_suffix"),
)
"""The data keys that each data set of a mixture may have."""

EXPECTED = 'expected weights by data set, such as {"me/web": 1.0, "me/human": 0.5}'


@dataclass(frozen=True)
class Part:
    """A data set of a mixture.

    Attributes:
        name: Its name in the mixture.
        weight: How often each of its rows is seen in an epoch, on average.
        keys: Its data keys; `dataset_name` is its name unless it is given.
    """

    name: str
    weight: float
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Its name for the plan and the card; of a local path, the last part."""
        path = Path(self.name).expanduser()
        return path.resolve().name if path.exists() else self.name


def read_mixture(given: Mapping[str, Any] | str | None) -> list[Part]:
    """Read the key `dataset_mixture`: a mapping, or its JSON.

    Raises:
        RecipeError: It is no such mapping, a weight is not a positive number, or a data set has an unknown key.
    """
    if not given:
        return []
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise RecipeError(f"dataset_mixture is {given!r:.80}, which is not JSON ({error}): {EXPECTED}.") from error
    if not isinstance(given, Mapping):
        raise RecipeError(f"dataset_mixture is {json.dumps(given):.80}: {EXPECTED}.")
    return [_read_part(name, value) for name, value in given.items()]


def _read_part(name: str, value: Any) -> Part:
    keys = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = keys.pop("weight", 1.0)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not (math.isfinite(weight) and weight > 0):
        raise RecipeError(
            f"dataset_mixture has the weight {json.dumps(weight):.60} for {name!r}: expected a number over 0, which "
            "says how often each row is seen in an epoch."
        )
    if unknown := [key for key in keys if key not in PART_KEYS]:
        nearest = get_close_matches(unknown[0], PART_KEYS, n=1)
        hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Expected weight, {', '.join(PART_KEYS)}."
        raise RecipeError(f"dataset_mixture has the key {unknown[0]!r} for {name!r}, which it does not know. {hint}")
    return Part(name, float(weight), {"dataset_name": name, **keys})


def number_rows(rows: Dataset, number: int) -> Dataset:
    """Put the number of a part before the ids of its rows, so that ids differ between parts and name the part."""
    ids = [f"{number}:{image_id}" for image_id in rows["image_id"][:]]
    return rows.remove_columns("image_id").add_column("image_id", ids)


class Mixture:
    """Rows of several data sets, with the weight of each.

    Args:
        rows: The rows of all parts, with ids by `number_rows`. Some may have been dropped.
        parts: The parts.

    Raises:
        RecipeError: A weight is so small that an epoch has no row of its part.
    """

    def __init__(self, rows: Dataset, parts: Sequence[Part]) -> None:
        self.rows, self.parts = rows, parts
        found = np.array([int(image_id.partition(":")[0]) for image_id in rows["image_id"][:]], dtype=np.int64)
        self.members = [np.flatnonzero(found == number) for number in range(len(parts))]
        self.seen = [round(part.weight * len(own)) for part, own in zip(parts, self.members, strict=True)]
        for part, own, seen in zip(parts, self.members, self.seen, strict=True):
            if seen == 0:
                raise RecipeError(
                    f"dataset_mixture has the weight {part.weight:g} for {part.name!r}, which has {len(own):,} rows: "
                    "an epoch would have none of them. Expected a larger weight."
                )

    @property
    def rows_per_epoch(self) -> int:
        """The number of rows of an epoch."""
        return sum(self.seen)

    def describe(self) -> str:
        """A sentence on the parts, for the plan and the model card."""
        parts = [
            f"{len(own):,} of {part.shown}, of which an epoch sees {seen:,} (weight {part.weight:g})"
            for part, own, seen in zip(self.parts, self.members, self.seen, strict=True)
        ]
        return f"The training images are a mixture: {'; '.join(parts)}."


class MixtureSampler:
    """The row numbers of an epoch of a mixture, in random order.

    The rows of a part come from an endless sequence of its permutations, of which each epoch takes the next ones. So
    all rows of a part are seen equally often, whatever its weight. The order depends only on seed and epoch.

    Args:
        mixture: The mixture.
        seed: Seed of the permutations.
    """

    def __init__(self, mixture: Mixture, seed: int) -> None:
        self.mixture, self.seed, self.epoch = mixture, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Use the rows and the order of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.mixture.rows_per_epoch

    def __iter__(self) -> Iterator[int]:
        parts = zip(self.mixture.members, self.mixture.seen, strict=True)
        rows = np.concatenate([self._draw(number, own, seen) for number, (own, seen) in enumerate(parts)])
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(rows).tolist())

    def _draw(self, number: int, own: np.ndarray, seen: int) -> np.ndarray:
        first, last = self.epoch * seen, (self.epoch + 1) * seen
        passes = range(first // len(own), -(-last // len(own)))
        drawn = [np.random.default_rng([self.seed, number, each, 1]).permutation(own) for each in passes]
        start = first - passes.start * len(own)
        return np.concatenate(drawn)[start : start + seen]
