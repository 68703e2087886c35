"""What every source of questions gives, and how it becomes rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, List, Value, concatenate_datasets

from blip_recipe.data.captions import flatten_texts
from blip_recipe.data.rows import type_of_ids
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWER_KEYS = ("answer", "raw_answer", "text")
"""Fields that hold the answer where it is stored with other facts about it (annotator, confidence)."""


@dataclass
class QuestionColumns:
    """A split as its source has it, a question a row.

    Args:
        images: One column `image`, not decoded (`datasets.Image(decode=False)`).
        questions: As they are written.
        answers: Those of each question's annotators.
        image_ids, question_ids: Those of each row; None where the source has none.
    """

    images: Dataset
    questions: Sequence[str | None]
    answers: list[list[str]]
    image_ids: Sequence[int | str] | None = None
    question_ids: Sequence[int | str] | None = None


def join_questions(columns: QuestionColumns, where: str) -> Dataset:
    """Rows of `image`, `image_id`, `question_id`, `question` and `answers`; pictures are not copied.

    Ids are row numbers where the source has none.

    Raises:
        RecipeError: There are no rows, or ids are neither integers nor text.
    """
    rows = len(columns.images)
    if rows == 0:
        raise RecipeError(f"{where} is empty: expected at least one picture with a question.")
    image_ids = list(range(rows)) if columns.image_ids is None else list(columns.image_ids)
    question_ids = list(range(rows)) if columns.question_ids is None else list(columns.question_ids)
    facts = Dataset.from_dict(
        {
            "image_id": image_ids,
            "question_id": question_ids,
            "question": [(question or "").strip() for question in columns.questions],
            "answers": columns.answers,
        },
        features=Features(
            {
                "image_id": Value(type_of_ids(image_ids, where)),
                "question_id": Value(type_of_ids(question_ids, where)),
                "question": Value("string"),
                "answers": List(Value("string")),
            }
        ),
    )
    return concatenate_datasets([columns.images, facts], axis=1)


def read_answers(cell: Any) -> list[str]:
    """The answers of one cell, as written but stripped.

    Args:
        cell: A text or number, which is one answer; a struct with `answer`; a list of these, an answer an annotator; or
            nothing. Alone, an empty text is no answer; among several it is an annotator's.

    Raises:
        TypeError: It is none of these.
    """
    found = [answer.strip() for answer in flatten_texts(cell, ANSWER_KEYS, numbers=True)]
    return found if len(found) > 1 else [answer for answer in found if answer]
