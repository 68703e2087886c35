"""Join the columns of a source of questions into rows."""

from __future__ import annotations

import ast
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, List, Value, concatenate_datasets

from blip_recipe.data.captions import flatten_texts
from blip_recipe.data.rows import infer_id_type, number_pictures
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWER_KEYS = ("answer", "raw_answer", "text")
"""Fields of the answer text in structs that also hold annotator or confidence."""

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_WITHOUT_COMMAS = re.compile(rf"\[\s*(?:{_QUOTED.pattern})(?:\s+(?:{_QUOTED.pattern}))+\s*\]")
"""A list of texts as numpy prints it: `['yes' 'no']`."""

_BEGIN = re.compile(r"\[\s*['\"{\[]|\{\s*['\"]")
"""How a list of texts or structs begins, or a struct."""


@dataclass
class QuestionColumns:
    """The columns of a split, one row per question.

    Args:
        images: A table with the column `image`, not decoded (`datasets.Image(decode=False)`).
        questions: The questions.
        answers: The answers of each question's annotators; None for all questions of a split without answers.
        image_ids, question_ids: The ids of each row; None if the source has none.
        answer_weights: The weight of each row's answers in the loss; None if the source has none.
    """

    images: Dataset
    questions: Sequence[str | None]
    answers: Sequence[list[str] | None]
    image_ids: Sequence[int | str] | None = None
    question_ids: Sequence[int | str] | None = None
    answer_weights: Sequence[float] | None = None


def join_questions(columns: QuestionColumns, where: str) -> Dataset:
    """Join columns into rows of `image`, `image_id`, `question_id`, `question` and `answers`, without copying pictures.

    Rows have `answer_weight` too, if the source has weights.

    Without image ids, questions about the same picture have the number of that picture; question ids are row numbers.

    Raises:
        RecipeError: There are no rows, or ids are neither integers nor texts.
    """
    rows = len(columns.images)
    if rows == 0:
        raise RecipeError(f"{where} is empty: expected at least one picture with a question.")
    image_ids = number_pictures(columns.images) if columns.image_ids is None else list(columns.image_ids)
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
                "image_id": Value(infer_id_type(image_ids, where)),
                "question_id": Value(infer_id_type(question_ids, where)),
                "question": Value("string"),
                "answers": List(Value("string")),
            }
        ),
    )
    if columns.answer_weights is not None:
        weights = [check_weight(weight, f"{where} row {row}") for row, weight in enumerate(columns.answer_weights)]
        facts = facts.add_column("answer_weight", weights)
    return concatenate_datasets([columns.images, facts], axis=1)


def check_weight(weight: Any, where: str) -> float:
    """The weight of a row's answers in the loss.

    Raises:
        RecipeError: It is not a number of at least 0.
    """
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not (is_number and math.isfinite(weight) and weight >= 0):
        raise RecipeError(f"{where}: the weight of the answers is {weight!r}: expected a number of at least 0.")
    return float(weight)


def read_answers(cell: Any) -> list[str]:
    """Read the answers of one cell, stripped. "None", "N/A", "unanswerable" and numbers are answers.

    Args:
        cell: A text or number, which is one answer; a struct with `answer`; a list of these, one per annotator; the
            text of such a list, as CSV files have it; or None. A single empty text is no answer; one of several counts
            as an annotator's answer.

    Raises:
        TypeError: The cell is of another type.
    """
    found = flatten_texts(parse_list(cell) if isinstance(cell, str) else cell, ANSWER_KEYS, numbers=True)
    answers = [answer.strip() for answer in found]
    return answers if len(answers) > 1 else [answer for answer in answers if answer]


def parse_list(text: str) -> Any:
    """Read a list or struct that was written as text, in the form of Python, JSON or numpy; return other texts as is.

    Raises:
        TypeError: The text begins like a list of texts or structs, but cannot be read.
    """
    stripped = text.strip()
    if stripped[:1] + stripped[-1:] not in ("[]", "{}"):
        return text
    if _WITHOUT_COMMAS.fullmatch(stripped):
        # Python would join texts without commas between them.
        return [ast.literal_eval(each) for each in _QUOTED.findall(stripped)]
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(stripped)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, (list, dict)):
            return found
    if _BEGIN.match(stripped):
        raise TypeError(f"a list that cannot be read ({text!r:.50})")
    return text
