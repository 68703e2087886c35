"""Find the predictions of the untouched base model for the rows that the finished model was scored on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blip_recipe.data.storage import BASELINE_PREDICTIONS_FILE, read_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from blip_recipe.card.facts import TaskWords


def match_baseline(
    output_dir: Path, predictions: Sequence[Mapping[str, Any]], words: TaskWords
) -> list[dict[str, Any]] | None:
    """The base model's predictions in the order of `predictions`, or None if they are those of other rows.

    Ids alone do not tell: row numbers are ids of other pictures in another split.

    Args:
        output_dir: The directory of `baseline_predictions.jsonl`.
        predictions: Lines of `predictions.jsonl`.
        words: The names of the task.
    """
    base = {record.get(words.key): record for record in read_lines(output_dir / BASELINE_PREDICTIONS_FILE)}
    if not base or len(base) != len(predictions):
        return None
    rows = [base.get(each[words.key], {}) for each in predictions]
    names = (words.references, "question", "group")
    is_same = all(old.get(name) == new.get(name) for old, new in zip(rows, predictions, strict=True) for name in names)
    return rows if is_same else None
