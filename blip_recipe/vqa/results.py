"""Write answers in the form of VQAv2's evaluation server."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from blip_recipe.data.storage import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

RESULT_FILE = "vqa_result.json"
"""File in the output directory with the answers to questions that cannot be scored."""


def write_results(path: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Write the answers in the form of VQAv2's evaluation server: `[{"question_id", "answer"}]`."""
    if not all(isinstance(each["question_id"], int) for each in predictions):
        logger.warning(
            "The questions have no answers to score, and their ids are not numbers, as VQAv2's server expects: see "
            "predictions."
        )
        return
    results = [{"question_id": each["question_id"], "answer": each["answer"]} for each in predictions]
    write_atomically(path, json.dumps(results, ensure_ascii=False).encode(), flush=True)
    logger.warning("%d questions have no answers to score: the model's answers are in %s", len(results), path)
