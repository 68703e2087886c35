"""Check that questions have answers where they are needed, and make the list of the training questions."""

from __future__ import annotations

import logging
from typing import Any

from blip_recipe.data.dataset import PictureDataset
from blip_recipe.data.shards import ShardedSplit
from blip_recipe.data.streaming import PictureStream
from blip_recipe.errors import RecipeError
from blip_recipe.vqa.answer_lists import ANSWER_LIST_FILE, FROM_TRAINING, frequent_answers
from blip_recipe.vqa.data import is_answered

logger = logging.getLogger(__name__)

STREAMED_LIST = (
    f"answer_list is {FROM_TRAINING!r} and the training questions are a stream, but the list is made of all answers "
    f"before training: name a file of answers, such as the {ANSWER_LIST_FILE} of another run."
)
"""The error about a list of the answers of a stream."""


def check_answered(args: Any, train: Any, scored: Any) -> None:
    """Check that questions have answers where they are needed.

    Args:
        args: The training arguments.
        train: Rows or data set to train on, or None.
        scored: Rows or data set to score, a dictionary of these by role, or None.

    Raises:
        RecipeError: Questions to train on or to evaluate during training have none.
    """
    checked = {"training": train}
    if args.eval_strategy != "no":
        checked["evaluation"] = scored.get("eval") if isinstance(scored, dict) else scored
    for name, dataset in checked.items():
        if dataset is not None and not is_answered(rows_of(dataset)):
            raise RecipeError(
                f"The {name} questions have no answers. Only the questions of test_split, or of `evaluate`, may have "
                "none: their answers are written and not scored."
            )


def answers_of_training(args: Any, train: Any) -> list[str]:
    """The frequent answers of the training questions.

    Raises:
        RecipeError: There are none, or they are a stream.
    """
    if isinstance(train, (PictureStream, ShardedSplit)):
        raise RecipeError(STREAMED_LIST)
    if train is None:
        raise RecipeError(
            f"answer_list is {FROM_TRAINING!r}, but there are no training questions: name a file of answers, such as "
            f"the {ANSWER_LIST_FILE} of a run."
        )
    rows = rows_of(train).select_columns(["answers"])
    answers = frequent_answers(rows[range(len(rows))]["answers"], args.answer_min_questions)
    if not answers:
        raise RecipeError(
            f"answer_list is {FROM_TRAINING!r}, but no answer is the most frequent one of {args.answer_min_questions} "
            f"of the {len(rows):,} training questions: set answer_min_questions to less, or name a file of answers."
        )
    logger.info("Ranking the %d most frequent answers of the training questions", len(answers))
    return answers


def rows_of(dataset: Any) -> Any:
    """The rows of a trainer's data set; of a stream, the first ones."""
    if isinstance(dataset, PictureStream):
        return dataset.split.sample()
    return dataset.rows if isinstance(dataset, PictureDataset) else dataset
