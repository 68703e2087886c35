"""Compare two files of predictions for the same pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.comparison import Difference, compare_scores
from blip_recipe.metrics.files import check_unique, read_rows
from blip_recipe.metrics.pairing import pair_files
from blip_recipe.metrics.records import answer_statistics, caption_statistics, match_statistics
from blip_recipe.metrics.scorer import CaptionScorer
from blip_recipe.metrics.scores import ScoreTokenizer, name_images
from blip_recipe.metrics.statistics import Statistics

Record = Mapping[str, Any]

EXPECTED = "lines of predictions.jsonl with scores, or captions with --references"

RESCORED = ("bleu", "meteor", "rouge_l", "cider", "exact_match")
"""Metrics that are computed again. Others take minutes or need more than texts: their values are read."""

NOT_MEANS = {"chair_i"}
"""Scores of images of which that of a set is no mean, and that cannot be computed from the files."""

RANKING = ("cider", "rouge_l", "vqa_accuracy", "reciprocal_rank", "exact_match", "bleu_4", "text_recall_1")
"""The scores by which pictures differ most: the first one that both files have."""


class Kind(NamedTuple):
    """What predictions of one task hold.

    Attributes:
        name: Plural noun for the pairs of a picture and a text.
        key: The field with the id.
        text: The text to show of a record.
        references: The field of the target texts.
    """

    name: str
    key: str
    text: Callable[[Record], str]
    references: str


class Scored(NamedTuple):
    """Records with their scores for the pictures that are compared, and the statistics of these."""

    statistics: list[Statistics]
    records: Sequence[Record]


KINDS = {
    "caption": Kind("images", "image_id", lambda record: record["caption"], "references"),
    "answer": Kind("questions", "question_id", lambda record: f"{record['question']} {record['answer']}", "answers"),
    "texts": Kind("images", "image_id", lambda record: record["texts"][0], "captions"),
}
"""The kinds of predictions by the field that only they have."""


def compare_files(
    first_file: Path,
    second_file: Path,
    *,
    references_file: Path | None = None,
    metrics: Sequence[str] | None = None,
    tokenizer: ScoreTokenizer = "ptb",
    subset: bool = False,
    resamples: int,
    seed: int,
    shown: int,
) -> dict[str, Any]:
    """Compare two files of predictions.

    Args:
        first_file, second_file: The predictions. Changes are from the first to the second.
        references_file: Reference captions; by default those of the files.
        metrics: Metrics of captions; by default those whose scores both files have.
        tokenizer: How captions are cut into words.
        subset: Whether to compare the pictures that both files have, if they are not the same.
        resamples, seed: As for `compare_scores`.
        shown: Number of pictures to show for each direction.

    Returns:
        `images`, `scores` (by name: the fields of `Difference`), `ranked_by`, and `better` and `worse`, the pictures
        whose score rose or fell most.

    Raises:
        RecipeError: A file has another format, the tasks differ, or the pictures or the references do.
        MetricError: A scorer failed.
    """
    files = first_file, second_file
    records = [read_records(file, references_file) for file in files]
    kinds = [kind_of(each, file) for each, file in zip(records, files, strict=True)]
    if kinds[0] != kinds[1]:
        raise RecipeError(
            f"{first_file} holds {kinds[0].name} with {kinds[0].references}, {second_file} {kinds[1].name} with "
            f"{kinds[1].references}: expected predictions of the same task."
        )
    kind = kinds[0]
    before, after = common_records(records[0], records[1], kind, files, subset=subset)
    if kind is KINDS["caption"]:
        old, new = statistics_of_captions(before, after, files, metrics, tokenizer)
    else:
        if references_file or metrics:
            raise RecipeError(f"{first_file} holds no captions: leave --references and --metrics out.")
        common_scores(before, after, files)
        statistics_of = match_statistics if kind is KINDS["texts"] else answer_statistics
        old, new = Scored(statistics_of(before), before), Scored(statistics_of(after), after)
    differences = compare_scores(old.statistics, new.statistics, resamples=resamples, seed=seed)
    return {
        "first": str(first_file),
        "second": str(second_file),
        kind.name: len(before),
        "scores": {name: each._asdict() for name, each in differences.items()},
        **most_different(old.records, new.records, kind, shown),
    }


def read_records(file: Path, references_file: Path | None) -> list[Record]:
    """Read the lines of `predictions.jsonl`, or captions with the references of another file.

    Raises:
        RecipeError: The file has another format.
    """
    if references_file:
        paired = pair_files(file, references_file, subset=True)
        return [
            {"image_id": image_id, "caption": paired.predictions[image_id], "references": references, "scores": {}}
            for image_id, references in paired.references.items()
        ]
    rows = read_rows(file, EXPECTED)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        raise RecipeError(f"{file} holds no list of predictions: expected {EXPECTED}.")
    return rows


def kind_of(records: Sequence[Record], file: Path) -> Kind:
    """The kind of predictions of a file.

    Raises:
        RecipeError: A line has other fields.
    """
    kind = next((kind for field, kind in KINDS.items() if field in records[0]), None)
    needed = {kind.key, kind.references, "scores"} if kind else {""}
    for number, record in enumerate(records, start=1):
        if kind is None or not needed <= record.keys() or not isinstance(record["scores"], dict):
            raise RecipeError(f"line {number} of {file} has the fields {', '.join(record)}: expected {EXPECTED}.")
    assert kind
    check_unique([record[kind.key] for record in records], f"in {file}: expected each once")
    return kind


def common_records(
    first: Sequence[Record], second: Sequence[Record], kind: Kind, files: tuple[Path, Path], *, subset: bool
) -> tuple[list[Record], list[Record]]:
    """The records of both files for the same ids, in the order of the first file.

    Raises:
        RecipeError: The ids differ and `subset` is false, no id is in both files, or target texts differ.
    """
    others = {record[kind.key]: record for record in second}
    before = [record for record in first if record[kind.key] in others]
    alone = len(first) - len(before), len(second) - len(before)
    if not before:
        raise RecipeError(f"{files[0]} and {files[1]} have no {kind.key} in common: expected the same {kind.name}.")
    if any(alone) and not subset:
        raise RecipeError(
            f"{alone[0]:,} {kind.name} are only in {files[0]} and {alone[1]:,} only in {files[1]}: expected the same "
            f"{kind.name}. To compare the {len(before):,} that both have, set subset to true."
        )
    after = [others[record[kind.key]] for record in before]
    changed = [
        old[kind.key] for old, new in zip(before, after, strict=True) if old[kind.references] != new[kind.references]
    ]
    if changed:
        raise RecipeError(
            f"{files[0]} and {files[1]} have other {kind.references} for {name_images(changed)}: expected the same "
            f"{kind.references}."
        )
    return before, after


def common_scores(before: Sequence[Record], after: Sequence[Record], files: tuple[Path, Path]) -> set[str]:
    """The names of the scores that all records have.

    Raises:
        RecipeError: There is none.
    """
    each = [{name for name, value in record["scores"].items() if is_number(value)} for record in (*before, *after)]
    if found := set.intersection(*each):
        return found
    raise RecipeError(f"{files[0]} and {files[1]} have no scores in common: expected some, or captions and --metrics.")


def is_number(value: object) -> bool:
    """Whether a score is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def statistics_of_captions(
    before: list[Record],
    after: list[Record],
    files: tuple[Path, Path],
    metrics: Sequence[str] | None,
    tokenizer: ScoreTokenizer,
) -> tuple[Scored, Scored]:
    """Score the captions of both files again, because CIDEr and BLEU depend on the whole set."""
    read: list[str] = []
    if metrics is None:
        named = {name: metric_of(name) for name in common_scores(before, after, files)}
        metrics = [each for each in RESCORED if each in named.values()]
        read = sorted(name for name, metric in named.items() if metric is None and name not in NOT_MEANS)
    with CaptionScorer(metrics, tokenizer=tokenizer) as scorer:
        return score_again(before, scorer, read), score_again(after, scorer, read)


def score_again(records: list[Record], scorer: CaptionScorer, read: Sequence[str]) -> Scored:
    """Compute the scorer's metrics, and take the scores `read` from the records."""
    statistics = caption_statistics(records, scorer, (), read)
    rows = [{**record, "scores": {name: record["scores"][name] for name in read}} for record in records]
    if scorer.metrics:
        predictions = {record["image_id"]: record["caption"] for record in records}
        scores = scorer.score(predictions, {record["image_id"]: record["references"] for record in records})
        statistics += scores.statistics
        for row in rows:
            row["scores"] |= scores.per_image[row["image_id"]]
    return Scored(statistics, rows)


def metric_of(score: str) -> str | None:
    """The metric to compute again for a score, such as BLEU for BLEU-4; None if its values are read."""
    metric = re.sub(r"_[1-4]$", "", score)
    return metric if metric in RESCORED else None


def most_different(before: Sequence[Record], after: Sequence[Record], kind: Kind, shown: int) -> dict[str, Any]:
    """The records whose score rose or fell most."""
    name = next((each for each in RANKING if each in before[0]["scores"] and each in after[0]["scores"]), None)
    if name is None:
        return {"ranked_by": None, "better": [], "worse": []}
    rows = [
        {
            kind.key: old[kind.key],
            "first": kind.text(old),
            "second": kind.text(new),
            "references": new[kind.references],
            "first_score": old["scores"][name],
            "second_score": new["scores"][name],
        }
        for old, new in zip(before, after, strict=True)
    ]
    changes = sorted(rows, key=lambda row: row["second_score"] - row["first_score"])
    rising = [row for row in reversed(changes) if row["second_score"] > row["first_score"]]
    falling = [row for row in changes if row["second_score"] < row["first_score"]]
    return {"ranked_by": name, "better": rising[:shown], "worse": falling[:shown]}


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """Format a comparison as a table, and the pictures that differ most."""
    kind = next(each for each in KINDS.values() if each.name in comparison)
    lines = [f"{comparison[kind.name]:,} {kind.name}: {comparison['first']} → {comparison['second']}", ""]
    rows = [("score", "first", "second", "change", "p")]
    for name, values in comparison["scores"].items():
        each = Difference(**values)
        cells = [
            f"{value:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})"
            for value, (low, high), sign in (
                (each.first, each.first_interval, ""),
                (each.second, each.second_interval, ""),
                (each.change, each.interval, "+"),
            )
        ]
        rows.append((name, *cells, f"{each.p_value:.3f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for title in ("better", "worse"):
        if comparison[title]:
            lines += ["", f"{title} by {comparison['ranked_by']}:"]
        for row in comparison[title]:
            identity = next(value for key, value in row.items() if key.endswith("_id"))
            lines += [
                f"  {identity}  {row['first_score']:.3f} → {row['second_score']:.3f}",
                f"    first:      {row['first']}",
                f"    second:     {row['second']}",
                f"    references: {' | '.join(row['references'])}",
            ]
    return "\n".join(lines)
