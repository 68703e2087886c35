"""Measure how often intervals hold the true score, how often the paired test is wrong, and what both cost.

python -m benchmarks.intervals

The population is the 40,504 images of COCO val2014 with a person's caption scored against the other captions of the
image. Each simulated evaluation draws some of its images. The true score is that of the population. `cider of the set`
is the CIDEr of an evaluation as it is computed, with the weights of its own references; its true value is the mean of
all evaluations. For the paired test, two captions of each image are given to two systems at random, anew for each
simulated evaluation, so that every difference that it finds is a false alarm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.scoring import coco_set
from blip_recipe.errors import run_command
from blip_recipe.metrics.bleu import Bleu
from blip_recipe.metrics.cider import Cider
from blip_recipe.metrics.comparison import SIGNIFICANT, compare_scores, paired_p_values
from blip_recipe.metrics.intervals import percentile_interval, resampled_sums, score_intervals
from blip_recipe.metrics.ngram_index import NgramIndex
from blip_recipe.metrics.rouge_l import RougeL
from blip_recipe.metrics.statistics import Statistics, mean_statistics
from blip_recipe.metrics.tokenizer import clean_caption, tokenize

IMAGES = (20, 50, 100, 400)
ALL_COCO = 40_504
OWN_WEIGHTS = "cider of the set"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000, help="Number of simulated evaluations.")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, help="Images of an evaluation.")
    parser.add_argument("--population", type=int, default=ALL_COCO, help="Images of the population.")
    parser.add_argument("--output", type=Path, default=RESULTS / "intervals_cpu.json")
    options = parser.parse_args()
    captions, references = read_population(options.population)
    statistics = [*score(captions, references), *shares(len(captions))]
    rows = [row for count in options.images for row in coverage(statistics, count, options.simulations)]
    rows += own_weights(captions, references, 400, options.simulations)
    sides = two_captions(captions, references)
    rows += [row for count in options.images for row in false_alarms(*sides, count, options.simulations)]
    rows += costs(statistics, 5000)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    write_results(options.output, machine(["numpy"]), [{key: row.get(key, "") for key in keys} for row in rows])


def read_population(images: int) -> tuple[list[str], list[list[str]]]:
    """The tokenized captions of the population, and their references."""
    captions, references = coco_set(images)
    tokens = iter(tokenize([clean_caption(each) for each in captions.values()]))
    others = iter(tokenize([clean_caption(text) for each in references.values() for text in each]))
    return list(tokens), [[next(others) for _ in each] for each in references.values()]


def score(captions: list[str], references: list[list[str]]) -> list[Statistics]:
    """The statistics of BLEU, ROUGE-L and CIDEr."""
    index = NgramIndex(references)
    found = (scorer.score(captions).statistics for scorer in (Bleu(index), RougeL(references), Cider(index)))
    return [statistics for each in found for statistics in each]


def shares(images: int) -> list[Statistics]:
    """Scores of right and wrong, and of VQA's accuracy, for answers that are right by chance."""
    generator = np.random.default_rng(1)
    parts = generator.choice([0, 0.3, 0.6, 0.9], images)
    answers = np.where(generator.random(images) < 0.8, 1.0, parts)
    right = [(f"exact_match {share}", (generator.random(images) < share).astype(float)) for share in (0.05, 0.5, 0.98)]
    found = [mean_statistics(name, values.tolist(), is_share=True) for name, values in right]
    return [*found, mean_statistics("vqa_accuracy", answers.tolist(), is_share=True)]


def draw(statistics: list[Statistics], rows: NDArray[Any]) -> list[Statistics]:
    """The statistics of a simulated evaluation."""
    return [each._replace(rows=each.rows[rows]) for each in statistics]


def coverage(statistics: list[Statistics], images: int, simulations: int) -> list[dict[str, Any]]:
    """How often the interval of an evaluation holds the score of the population."""
    true = {name: value for each in statistics for name, value in each.of_set().items()}
    held = dict.fromkeys(true, 0)
    plain = dict.fromkeys(true, 0)
    generator = np.random.default_rng(images)
    for seed in range(simulations):
        sample = draw(statistics, generator.integers(len(statistics[0].rows), size=images))
        for name, (low, high) in score_intervals(sample, seed=seed).items():
            held[name] += low <= true[name] <= high
        for each, sums in zip(sample, resampled_sums(sample, 1000, seed), strict=True):
            for name, column in zip(each.names, each.scores(sums).T, strict=True):
                low, high = percentile_interval(column)
                plain[name] += low <= true[name] <= high
    return [
        {
            "what": f"interval of {name}",
            "images": images,
            "true": round(true[name], 4),
            "share or seconds": round(held[name] / simulations, 4),
            "of plain percentiles": round(plain[name] / simulations, 4),
        }
        for name in true
    ]


def own_weights(
    captions: list[str], references: list[list[str]], images: int, simulations: int
) -> list[dict[str, Any]]:
    """How often the interval of CIDEr holds its mean, if each evaluation weighs n-grams by its own references."""
    generator = np.random.default_rng(images)
    values, intervals = [], []
    for seed in range(simulations):
        rows = generator.integers(len(captions), size=images)
        found = Cider(NgramIndex([references[row] for row in rows])).score([captions[row] for row in rows])
        values.append(found.corpus["cider"])
        intervals.append(score_intervals(found.statistics, seed=seed)["cider"])
    true = sum(values) / len(values)
    held = sum(low <= true <= high for low, high in intervals) / simulations
    return [
        {
            "what": f"interval of {OWN_WEIGHTS}",
            "images": images,
            "true": round(true, 4),
            "share or seconds": round(held, 4),
        }
    ]


def two_captions(captions: list[str], references: list[list[str]]) -> tuple[list[Statistics], list[Statistics]]:
    """The statistics of the first and the second reference of each image, scored against its other captions."""
    others = [[caption, *texts[2:]] for caption, texts in zip(captions, references, strict=True)]
    return score([texts[0] for texts in references], others), score([texts[1] for texts in references], others)


def false_alarms(
    first: list[Statistics], second: list[Statistics], images: int, simulations: int
) -> Iterator[dict[str, Any]]:
    """How often the paired test tells two equal systems apart, which get the captions of each image at random."""
    generator = np.random.default_rng(images)
    alarms: dict[str, int] = {}
    for seed in range(simulations):
        rows = generator.integers(len(first[0].rows), size=images)
        swapped = generator.integers(2, size=(images, 1)).astype(bool)
        pairs = list(zip(draw(first, rows), draw(second, rows), strict=True))
        one = [left._replace(rows=np.where(swapped, right.rows, left.rows)) for left, right in pairs]
        other = [left._replace(rows=np.where(swapped, left.rows, right.rows)) for left, right in pairs]
        for name, value in paired_p_values(one, other, seed=seed).items():
            alarms[name] = alarms.get(name, 0) + (value <= SIGNIFICANT)
    for name, count in alarms.items():
        yield {"what": f"false alarms of {name}", "images": images, "share or seconds": round(count / simulations, 4)}


def costs(statistics: list[Statistics], images: int) -> list[dict[str, Any]]:
    """The seconds for all scores of an evaluation, with 1,000 resamples."""
    half = len(statistics[0].rows) // 2
    sample = draw(statistics, np.arange(images) % half)
    other = draw(statistics, half + np.arange(images) % half)
    work: dict[str, Callable[[], object]] = {
        "intervals": partial(score_intervals, sample),
        "comparison": partial(compare_scores, sample, other),
    }
    return [
        {
            "what": f"seconds of {name}",
            "images": images,
            "share or seconds": round(min(seconds_of(each) for _ in range(3)), 3),
        }
        for name, each in work.items()
    ]


if __name__ == "__main__":
    run_command(main)
