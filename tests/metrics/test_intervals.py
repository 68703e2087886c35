"""How sure a score is: intervals hold the truth, and the paired test is seldom wrong."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from metrics_reference import Captions, References

from blip_recipe.errors import RecipeError
from blip_recipe.metrics import score_captions
from blip_recipe.metrics.comparison import compare_scores, paired_p_values
from blip_recipe.metrics.groups import name_groups
from blip_recipe.metrics.intervals import (
    draw_counts,
    is_end,
    score_intervals,
    small_sample_factor,
    wilson_interval,
)
from blip_recipe.metrics.records import answer_statistics, match_statistics
from blip_recipe.metrics.statistics import mean_statistics, merge_rows

CHEAP = ["bleu", "rouge_l", "cider", "exact_match"]
WORDS = ["a", "dog", "cat", "runs", "sits", "on", "the", "red", "sofa", "grass", "near", "big", "small"]


def write_captions(images: int, seed: int = 0) -> tuple[Captions, References]:
    """Captions of random words with some of each reference in them."""
    drawn = random.Random(seed)
    references: References = {image: [" ".join(drawn.choices(WORDS, k=8)) for _ in range(3)] for image in range(images)}
    captions: Captions = {
        image: " ".join(word if drawn.random() < 0.8 else drawn.choice(WORDS) for word in texts[0].split())
        for image, texts in references.items()
    }
    return captions, references


def test_a_resample_has_the_scores_of_a_set_of_its_captions() -> None:
    """The scorer scores a set in which an image stands twice. CIDEr is left out, as its weights are kept."""
    captions, references = write_captions(12)
    metrics = ["bleu", "rouge_l", "exact_match"]
    statistics = score_captions(captions, references, metrics).statistics
    (counts,) = draw_counts(12, 100, seed=3)
    assert counts.sum(1).tolist() == [12] * 100
    for drawn in counts[:3].astype(int).tolist():
        images = list(itertools.chain.from_iterable([image] * count for image, count in enumerate(drawn)))
        chosen = dict(enumerate(images))
        scores = score_captions(
            {place: captions[image] for place, image in chosen.items()},
            {place: references[image] for place, image in chosen.items()},
            metrics,
            resamples=0,
        )
        for each in statistics:
            found = each.scores(np.array(drawn) @ each.rows)
            assert found.tolist() == pytest.approx([scores.corpus[name] for name in each.names], abs=1e-12)


def test_intervals_hold_the_score_of_the_population_as_often_as_they_say() -> None:
    """`benchmarks/intervals.py` does this at length; 600 evaluations tell 95% from 92% and 98%."""
    captions, references = write_captions(2000)
    statistics = score_captions(captions, references, CHEAP, resamples=0).statistics
    skewed = np.random.default_rng(1).choice([0, 0.3, 0.6, 1], 2000, p=[0.02, 0.04, 0.04, 0.9])
    statistics.append(mean_statistics("vqa_accuracy", skewed.tolist(), is_share=True))
    true = {name: value for each in statistics for name, value in each.of_set().items()}
    generator = np.random.default_rng(0)
    held = dict.fromkeys(true, 0)
    for seed in range(600):
        rows = generator.integers(2000, size=100)
        sample = [each._replace(rows=each.rows[rows]) for each in statistics]
        for name, (low, high) in score_intervals(sample, resamples=400, seed=seed).items():
            held[name] += low <= true[name] <= high
    shares = {name: count / 600 for name, count in held.items()}
    assert all(0.92 <= share <= 0.98 for share in shares.values()), shares


def test_equal_systems_seldom_differ_and_different_ones_do() -> None:
    generator = np.random.default_rng(0)
    alarms, found = 0, 0
    for seed in range(400):
        first, second = generator.gamma(1, size=(2, 30))
        sides = [[mean_statistics("cider", values.tolist())] for values in (first, second, first + 1)]
        alarms += paired_p_values(sides[0], sides[1], resamples=199, seed=seed)["cider"] <= 0.05
        found += paired_p_values(sides[0], sides[2], resamples=199, seed=seed)["cider"] <= 0.05
    # Two standard errors of 400 tests above the level.
    assert alarms / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    assert found == 400


def test_the_paired_test_counts_every_swap() -> None:
    """Of all 2^6 ways to swap, the share that differs as much is counted by hand."""
    first, second = [0.1, 0.2, 0.9, 0.4, 0.3, 0.5], [0.3, 0.1, 1.9, 0.8, 0.35, 0.9]
    moves = [after - before for before, after in zip(first, second, strict=True)]
    real = abs(sum(moves))
    swaps = list(itertools.product((1, -1), repeat=6))
    exact = sum(
        abs(sum(sign * move for sign, move in zip(signs, moves, strict=True))) >= real - 1e-9 for signs in swaps
    ) / len(swaps)
    sides = [mean_statistics("x", values) for values in (first, second)]
    assert paired_p_values([sides[0]], [sides[1]], resamples=20_000)["x"] == pytest.approx(exact, abs=0.01)
    assert paired_p_values([sides[0]], [sides[0]], resamples=500)["x"] == 1
    far = mean_statistics("x", [value + 9 for value in range(40)])
    assert paired_p_values([mean_statistics("x", [0.0] * 40)], [far], resamples=999)["x"] == 0.001


def test_a_comparison_has_both_scores_their_difference_and_its_interval() -> None:
    captions, references = write_captions(60)
    worse = {image: " ".join(caption.split()[:5]) for image, caption in captions.items()}
    first, second = (score_captions(each, references, CHEAP, resamples=500) for each in (worse, captions))
    differences = compare_scores(first.statistics, second.statistics, resamples=500)
    assert differences.keys() == first.corpus.keys()
    for name, each in differences.items():
        assert (each.first, each.second) == pytest.approx((first.corpus[name], second.corpus[name]), abs=1e-12)
        assert (each.first_interval, each.second_interval) == (first.intervals[name], second.intervals[name])
        assert each.interval[0] <= each.change <= each.interval[1]
    assert differences["cider"].p_value < 0.01
    assert differences["cider"].interval[0] > 0


def test_shares_have_wilsons_interval_also_where_all_are_right() -> None:
    # Brown, Cai and DasGupta, 2001, example: 10 of 10, and a worked example of Newcombe, 1998: 81 of 263.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(1, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    found = score_intervals([mean_statistics("exact_match", [1.0] * 10, is_share=True)])
    assert score_intervals([mean_statistics("cider", [1.0] * 10)])["cider"] == (1, 1)
    assert found["exact_match"] == wilson_interval(1, 10)
    assert wilson_interval(0, 10) == pytest.approx((0, 1 - 0.7225), abs=1e-4)


def test_few_images_have_wider_intervals_as_students_t_says() -> None:
    # t quantiles of 4, 9 and 29 degrees of freedom, from tables.
    for images, student in ((5, 2.7764), (10, 2.2622), (30, 2.0452)):
        expected = (images / (images - 1)) ** 0.5 * student / 1.95996
        assert small_sample_factor(images) == pytest.approx(expected, rel=3e-3)
    one = score_captions({1: "a dog"}, {1: ["a dog runs"]}, CHEAP, resamples=100)
    assert one.intervals["cider"] == (one.corpus["cider"],) * 2


def test_the_same_seed_gives_the_same_intervals_and_none_are_computed_on_request() -> None:
    captions, references = write_captions(30)
    first, again, other = (score_captions(captions, references, CHEAP, seed=seed).intervals for seed in (1, 1, 2))
    assert first == again
    assert first["cider"] != other["cider"]
    assert score_captions(captions, references, CHEAP, resamples=0).intervals == {}
    for few in (-1, 99):
        with pytest.raises(RecipeError, match=rf"resamples is {few}: expected at least 100, or 0 for no intervals"):
            score_captions(captions, references, CHEAP, resamples=few)


def test_groups_have_intervals_of_their_own() -> None:
    captions, references = write_captions(40)
    groups = {image: "low" if number < 20 else "in-domain" for number, image in enumerate(captions)}
    scores = score_captions(captions, references, ["cider"], groups=groups)
    low: Captions = {image: captions[image] for image in range(20)}
    alone = score_captions(low, {image: references[image] for image in low}, ["cider"])
    assert scores.intervals["cider_low_group"] == alone.intervals["cider"]
    assert scores.intervals.keys() == {"cider", "cider_in_domain", "cider_low_group"}


def test_no_group_is_mixed_up_with_an_end_of_an_interval() -> None:
    names = name_groups(["low", "Very high", "p-value", "lower", "slow"], "A split")
    assert list(names.values()) == ["very_high_group", "low_group", "lower", "p_value_group", "slow"]
    scores = {"cider": 1.0, "cider_low": 0.9, "cider_p_value": 0.1, "cider_slow": 0.5}
    assert [name for name in scores if is_end(name, scores)] == ["cider_low", "cider_p_value"]


def test_questions_and_texts_of_an_image_are_drawn_together() -> None:
    answers: list[dict[str, Any]] = [
        {"image_id": number // 4, "scores": {"vqa_accuracy": 1.0 if number < 40 else 0.0}} for number in range(80)
    ]
    (together,) = answer_statistics(answers)
    alone = mean_statistics("vqa_accuracy", [each["scores"]["vqa_accuracy"] for each in answers], is_share=True)
    assert together.rows.tolist() == [[4.0, 4.0]] * 10 + [[0.0, 4.0]] * 10
    assert merge_rows(alone, [each["image_id"] for each in answers]).rows.tolist() == together.rows.tolist()
    wide, narrow = (score_intervals([each])["vqa_accuracy"] for each in (together, alone))
    assert wide[1] - wide[0] > 1.7 * (narrow[1] - narrow[0])
    matches = [{"rank": 1, "caption_ranks": [1, 7]}, {"rank": 6, "caption_ranks": [2, 3, 11]}]
    found = {name: value for each in match_statistics(matches) for name, value in each.of_set().items()}
    assert found == pytest.approx(
        {
            **{"text_recall_1": 0.5, "text_recall_5": 0.5, "text_recall_10": 1.0},
            **{"image_recall_1": 0.2, "image_recall_5": 0.6, "image_recall_10": 0.8},
            "recall_mean": (0.5 + 0.5 + 1 + 0.2 + 0.6 + 0.8) / 6,
        }
    )
