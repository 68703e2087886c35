"""Find the columns of questions and answers, and read, clean and check their texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import ClassLabel, LargeList, List, Value

from blip_recipe.data.captions import MAX_CHARACTERS, normalize_question
from blip_recipe.data.columns import SET_KEY, check_column
from blip_recipe.errors import RecipeError
from blip_recipe.vqa.rows import read_answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Features

    from blip_recipe.vqa.arguments import VqaDataArguments

QUESTION_NAMES = ("question", "questions", "query")
ANSWER_NAMES = ("answers", "answer", "multiple_choice_answer", "label", "labels")
"""Known names of question and answer columns, in order of preference."""

WEIGHT = "answer_weight"
"""The column with the weight of a row's answers in the loss, if there is one."""

IMAGE_TOKEN = "<image>"
"""The place of the picture in LLaVA's questions. It is left out."""

EXPECTED_ANSWERS = "expected an answer, or a list of them, as text or as structs with 'answer'"


def validate_question(record: Mapping[str, Any]) -> str | None:
    """Why the question or the answers of a row cannot be used; None if they can.

    Answers are None in a split without answers.
    """
    if not (record["question"] or "").strip():
        return "it has no question"
    if record["answers"] == []:
        return "it has no answer"
    longest = max(map(len, [record["question"], *(record["answers"] or ())]))
    if longest > MAX_CHARACTERS:
        return f"it has a text of {longest:,} characters: expected at most {MAX_CHARACTERS:,}"
    return None


def draw_question(record: Mapping[str, Any], normalize: bool) -> dict[str, Any]:
    """What an item has besides its row and picture: `question`, `answers`, and `answer_weight`, by default 1."""
    return {
        "question": normalize_question(record["question"]) if normalize else record["question"],
        "answers": record["answers"],
        "answer_weight": record.get(WEIGHT, 1.0),
    }


class QuestionNames(NamedTuple):
    """The columns of a source of questions; those that it lacks are None, or no columns."""

    question: str
    answers: list[str]
    image_id: str | None
    question_id: str | None
    weight: str | None


def choose_question_columns(
    features: Features, arguments: VqaDataArguments, where: str, advice: str = SET_KEY, needs_answers: bool = True
) -> QuestionNames:
    """Choose the columns of questions, answers, ids and weights.

    Args:
        features: The columns of the source.
        arguments: The recipe's data keys.
        where: Name of the data set in error messages.
        advice: What to do, for the error message.
        needs_answers: Whether there must be a column of answers.

    Raises:
        RecipeError: A column is missing or has the wrong type.
    """
    question = _choose(features, QUESTION_NAMES, arguments.question_column, "question_column", where, advice)[0]
    answers: list[str] = []
    if needs_answers or arguments.answer_column or _find_columns(features, ANSWER_NAMES):
        answers = _choose(features, ANSWER_NAMES, arguments.answer_column, "answer_column", where, advice)
    for key in ("answer_weight_column", "image_id_column"):
        if (asked := getattr(arguments, key)) is not None:
            check_column(features, asked, key, where)
    feature = features[question]
    if not (isinstance(feature, Value) and ("string" in feature.dtype or feature.dtype == "null")):
        raise RecipeError(f"{where} column {question!r} holds {feature}: expected one question per row, as text.")
    return QuestionNames(
        question,
        answers,
        arguments.image_id_column or ("image_id" if "image_id" in features else None),
        "question_id" if "question_id" in features else None,
        arguments.answer_weight_column or (WEIGHT if WEIGHT in features else None),
    )


def read_question(cell: str | None) -> str | None:
    """The question of a cell, without the place of the picture."""
    return cell and cell.replace(IMAGE_TOKEN, "").strip()


def read_row_answers(row: Mapping[str, Any], columns: Sequence[str], features: Features, where: str) -> list[str]:
    """The answers of a row. Several columns hold an annotator's answer each.

    Raises:
        RecipeError: A cell holds another type. `where` names the row.
    """
    try:
        read = [read_answers(_name_classes(row[name], features[name])) for name in columns]
    except TypeError as error:
        raise RecipeError(f"{where}: column {columns[0]!r} holds {error}: {EXPECTED_ANSWERS}.") from error
    return [answer for each in read for answer in each]


def _choose(
    features: Features, known: tuple[str, ...], asked: str | None, key: str, where: str, advice: str
) -> list[str]:
    """The column named by the argument `key`, else the first of `known` that exists, or its numbered columns.

    Upper case is ignored. `advice` goes into the error.
    """
    if asked is not None:
        check_column(features, asked, key, where)
        return [asked]
    if found := _find_columns(features, known):
        return found
    todo = advice.format(key=key, name=known[0], columns=", ".join(features))
    raise RecipeError(f"{where} has none of the columns {', '.join(known)}: {todo}.")


def _find_columns(features: Features, known: tuple[str, ...]) -> list[str]:
    """The first of `known` that exists, or its numbered columns."""
    for name in known:
        numbered = re.compile(rf"{name}_?(\d+)", re.IGNORECASE)
        numbers = {each: int(match[1]) for each in features if (match := numbered.fullmatch(each))}
        found = [each for each in features if each.lower() == name][:1] or sorted(numbers, key=numbers.__getitem__)
        if found:
            return found
    return []


def _name_classes(cell: Any, feature: Any) -> Any:
    """Replace class numbers of `datasets` by class names; -1 is no class."""
    if isinstance(feature, (List, LargeList)) and isinstance(feature.feature, ClassLabel):
        return [_name_classes(each, feature.feature) for each in cell or ()]
    if isinstance(feature, ClassLabel):
        return None if cell is None or cell < 0 else feature.int2str(cell)
    return cell
