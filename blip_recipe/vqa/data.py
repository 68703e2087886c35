"""A split of any source of questions, as rows of `image`, `image_id`, `question_id`, `question` and `answers`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Image, Value

from blip_recipe.data.columns import check_column, choose_image_column
from blip_recipe.data.rows import parse_split
from blip_recipe.data.shapes import SHAPES_SPLITS, draw_scene, encode_picture
from blip_recipe.data.tables import ids_of, images_of, load_table
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.parsing import SHAPES
from blip_recipe.vqa.files import is_vqa_folder, read_vqa_files
from blip_recipe.vqa.questions import Question, questions_of
from blip_recipe.vqa.rows import QuestionColumns, join_questions, read_answers

if TYPE_CHECKING:
    from blip_recipe.recipe.parsing import DataArguments

QUESTION_NAMES = ("question", "questions", "query")
ANSWER_NAMES = ("answers", "answer", "multiple_choice_answer", "label", "labels")
"""Columns of questions and answers in the order in which they are preferred."""

MAX_WORDS = 50
"""Longest question in words (`pre_question` of the original)."""

_REMOVED = re.compile(r'[.!"()*#:;~]')


def normalize_question(text: str) -> str:
    """A question as the original asks it: lower case, some punctuation left out, at most 50 words.

    Question marks, commas, apostrophes and hyphens stay. Source: `pre_question` in `data/utils.py` of the original
    repository.
    """
    return " ".join(_REMOVED.sub("", text.lower()).split()[:MAX_WORDS])


def load_questions(arguments: DataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
    """A split of the recipe's data set.

    Args:
        arguments: The recipe's data keys. `dataset_name` is `shapes`, a Hub id, a directory, or VQAv2's files
            (`read_vqa_files`).
        split: The split, or a sum of them (`train+val`).
        max_samples: Only the first questions.

    Returns:
        `image`: `{"bytes", "path"}` (`datasets.Image(decode=False)`). `image_id` and `question_id`: the data's own (int
        or str), else the row number; rows that share an `image_id` are about one picture. `question` and `answers`, one
        of each annotator: as written but stripped. What is wrong with single rows is found by `check_splits`.

    Raises:
        RecipeError: There is no such data set, split or column, the split is empty, or paths lead out of their folder.
    """
    where = f"{arguments.dataset_name}, split {split!r},"
    if arguments.dataset_name == SHAPES:
        columns = _read_shapes(split, max_samples)
    elif is_vqa_folder(arguments):
        columns = read_vqa_files(arguments, split)
    else:
        columns = _read_table(arguments, split, max_samples, where)
    rows = join_questions(columns, where)
    return rows if max_samples is None else rows.select(range(min(max_samples, len(rows))))


def _read_shapes(split: str, max_samples: int | None) -> QuestionColumns:
    pictures: list[dict[str, Any]] = []
    image_ids: list[int] = []
    questions: list[Question] = []
    asked = (each for name in parse_split(split, SHAPES_SPLITS, SHAPES) for each in questions_of(name))
    for image_id, (scene, of_scene) in enumerate(asked):
        if max_samples is not None and len(questions) >= max_samples:
            break
        picture = {"bytes": encode_picture(draw_scene(scene)), "path": None}
        pictures += [picture] * len(of_scene)
        image_ids += [image_id] * len(of_scene)
        questions += of_scene
    return QuestionColumns(
        images=Dataset.from_dict({"image": pictures}, features=Features({"image": Image(decode=False)})),
        questions=[question.text for question in questions],
        answers=[list(question.answers) for question in questions],
        image_ids=image_ids,
    )


def _read_table(arguments: DataArguments, split: str, max_rows: int | None, where: str) -> QuestionColumns:
    table = load_table(arguments, split, max_rows)
    image_column = choose_image_column(table.features, arguments.image_column, where)
    question_column = _choose(table, QUESTION_NAMES, arguments.question_column, "question_column", where)
    answer_column = _choose(table, ANSWER_NAMES, arguments.answer_column, "answer_column", where)
    feature = table.features[question_column]
    if not (isinstance(feature, Value) and "string" in feature.dtype):
        raise RecipeError(f"{where} question_column {question_column!r} holds {feature}: expected text, one a row.")
    image_ids = arguments.image_id_column or ("image_id" if "image_id" in table.features else None)
    question_ids = "question_id" if "question_id" in table.features else None
    return QuestionColumns(
        images_of(table, image_column, arguments, where),
        table[question_column][:],
        _answers_of(table, answer_column, where),
        None if image_ids is None else ids_of(table, image_ids, where),
        None if question_ids is None else ids_of(table, question_ids, where),
    )


def _choose(table: Dataset, known: tuple[str, ...], asked: str | None, key: str, where: str) -> str:
    """The column that the recipe's `key` names, else the first of `known` names that is there."""
    if asked is not None:
        check_column(table.features, asked, key, where)
        return asked
    found = [name for name in known if name in table.features]
    if not found:
        raise RecipeError(
            f"{where} has none of the columns {', '.join(known)}: set {key} to one of {', '.join(table.features)}."
        )
    return found[0]


def _answers_of(table: Dataset, column: str, where: str) -> list[list[str]]:
    answers = []
    for row, cell in enumerate(table.select_columns([column]).to_dict()[column]):
        try:
            answers.append(read_answers(cell))
        except TypeError as error:
            raise RecipeError(
                f"{where} row {row}: {column!r} holds {error}: expected an answer, or a list of them, as text or as "
                "structs with 'answer'."
            ) from error
    return answers
