"""Turn the lines of `predictions.jsonl` into the statistics of their scores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blip_recipe.metrics.statistics import Statistics, mean_of_scores, mean_statistics, merge_rows

if TYPE_CHECKING:
    from blip_recipe.metrics.scorer import CaptionScorer

Records = Sequence[Mapping[str, Any]]

RANKS = (1, 5, 10)
"""The numbers of first candidates of recalls."""


def caption_statistics(
    records: Records, scorer: CaptionScorer, rescored: Collection[str], names: Iterable[str] = ()
) -> list[Statistics]:
    """The statistics of captions.

    Args:
        records: Lines of `image_id`, `caption`, `references` and `scores`.
        scorer: The scorer.
        rescored: Metrics to compute again. The lines do not hold the statistics of those that are no mean of images.
        names: Scores that are means of those of the lines.
    """
    kept = [mean_statistics(name, [record["scores"][name] for record in records]) for name in names]
    if not rescored:
        return kept
    predictions = {record["image_id"]: record["caption"] for record in records}
    references = {record["image_id"]: record["references"] for record in records}
    return (
        kept + scorer.score(predictions, references, [each for each in scorer.metrics if each in rescored]).statistics
    )


def answer_statistics(records: Records) -> list[Statistics]:
    """The statistics of answers, a row per image: questions about the same image are not independent."""
    owners = [record["image_id"] for record in records]
    return [
        merge_rows(mean_statistics(name, [record["scores"][name] for record in records], is_share=True), owners)
        for name in (records[0]["scores"] if records else ())
    ]


def match_statistics(records: Records) -> list[Statistics]:
    """The statistics of recalls in both directions, a row per image, with the candidates as they are.

    The texts of an image count together: they are not independent.
    """
    found = [[float(record["rank"] <= rank) for record in records] for rank in RANKS]
    texts = [
        mean_statistics(f"text_recall_{rank}", each, is_share=True) for rank, each in zip(RANKS, found, strict=True)
    ]
    if not all("caption_ranks" in record for record in records):  # of an earlier version
        return texts
    ranks = [record["caption_ranks"] for record in records]
    counts = [len(each) for each in ranks]
    found = [[float(sum(own <= rank for own in each)) for each in ranks] for rank in RANKS]
    images = [
        mean_statistics(f"image_recall_{rank}", each, counts, is_share=True)
        for rank, each in zip(RANKS, found, strict=True)
    ]
    return [*texts, *images, mean_of_scores([*texts, *images], "recall_mean")]
