"""Stream questions about pictures from shards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import List, Value

from blip_recipe.data.convert import with_features
from blip_recipe.data.images import digest
from blip_recipe.data.row_texts import RowTexts
from blip_recipe.data.shards import choose_columns, open_stream
from blip_recipe.data.streaming import PictureStream
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.rows import QuestionColumns, check_weight, join_questions
from blip_recipe.vqa.texts import (
    WEIGHT,
    QuestionNames,
    choose_question_columns,
    draw_question,
    read_question,
    read_row_answers,
    validate_question,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import numpy as np
    from datasets import Dataset, Features, IterableDataset

    from blip_recipe.data.shards import ShardedSplit, StreamedRow


@dataclass(frozen=True)
class QuestionTexts(RowTexts):
    """Questions with their answers, one per row.

    Args:
        names: The columns of the source.
        source: The types of all columns of the source.
        needs_answers: Whether the answers may not be missing altogether.
    """

    unit = "question"
    counted = "answers"
    joins_rows = False

    names: QuestionNames
    source: Features
    needs_answers: bool = True

    @classmethod
    def choose(
        cls, features: Features, arguments: VqaDataArguments, where: str, needs_answers: bool = True
    ) -> QuestionTexts:
        """Choose the columns among those of a stream.

        Raises:
            RecipeError: A column is missing or has the wrong type.
        """
        names = choose_question_columns(features, arguments, where, needs_answers=needs_answers)
        return cls(names, features, needs_answers)

    @property
    def id_column(self) -> str | None:  # type: ignore[override]
        """The column of image ids."""
        return self.names.image_id

    @property
    def columns(self) -> list[str]:
        """The columns of questions, answers, question ids and weights."""
        return [self.names.question, *self.names.answers, *filter(None, [self.names.question_id, self.names.weight])]

    @property
    def features(self) -> dict[str, Any]:
        """A question, its answers, and its id and the weight of its answers if the source has them."""
        found = {"question": Value("string"), "answers": List(Value("string"))}
        if self.names.question_id is not None:
            found["question_id"] = self.source[self.names.question_id]
        return found | ({} if self.names.weight is None else {WEIGHT: Value("float64")})

    def read(self, rows: Sequence[Mapping[str, Any]], where: Callable[[int], str]) -> dict[str, Any]:
        """Read the question and the answers of a row."""
        (row,) = rows
        answers = read_row_answers(row, self.names.answers, self.source, where(0)) if self.names.answers else None
        found: dict[str, Any] = {"question": read_question(row[self.names.question]) or "", "answers": answers}
        if self.names.question_id is not None:
            found["question_id"] = row[self.names.question_id]
        if self.names.weight is not None:
            found[WEIGHT] = check_weight(row[self.names.weight], where(0))
        return found

    def validate(self, texts: Mapping[str, Any]) -> str | None:
        """Check that there are a question and answers, and that none is too long."""
        return validate_question(texts)

    def join(self, images: Dataset, image_ids: list[Any] | None, texts: Mapping[str, list[Any]], where: str) -> Dataset:
        """Join into rows of `image`, `image_id`, `question_id`, `question` and `answers`."""
        answers = texts["answers"]
        if not (self.needs_answers or any(answers)):
            answers = [None] * len(answers)
        columns = QuestionColumns(
            images, texts["question"], answers, image_ids, texts.get("question_id"), texts.get(WEIGHT)
        )
        return join_questions(columns, where)


def open_questions(arguments: VqaDataArguments, needs_answers: bool = True) -> ShardedSplit:
    """Open the training split as shards of questions.

    Raises:
        RecipeError: The data set, split or column does not exist.
    """
    return open_stream(arguments, partial(QuestionTexts.choose, needs_answers=needs_answers))


def shard_questions(stream: IterableDataset, where: str) -> ShardedSplit:
    """Convert a stream of questions into shards that are read while training.

    Raises:
        RecipeError: A column is unknown or of the wrong type.
    """
    # With a local directory as name, absolute paths are allowed: the caller chose them.
    arguments = VqaDataArguments(dataset_name=".")
    return choose_columns([with_features(stream)], arguments, title=where, choose=QuestionTexts.choose)


class QuestionStream(PictureStream):
    """A stream of the items of a `QuestionDataset`.

    Args:
        split: The shards.
        normalize: Whether to clean questions as the original does (`normalize_question`).
        group_questions: Whether the questions about an image in a shuffle buffer follow each other.
        kwargs: Arguments of `PictureStream`.
    """

    def __init__(self, split: ShardedSplit, *, normalize: bool, group_questions: bool, **kwargs: Any) -> None:
        super().__init__(split, **kwargs)
        self.normalize, self.group_questions = normalize, group_questions

    def draw(self, image: StreamedRow, rng: np.random.Generator) -> dict[str, Any]:
        """The texts, and the key of the image, which questions of a batch share."""
        return {"image_key": key_of(image), **draw_question(image.texts, self.normalize)}

    def order(self, block: Sequence[StreamedRow], rng: np.random.Generator) -> list[int]:
        """A random order, of images instead of questions with `group_questions`."""
        if not self.group_questions:
            return super().order(block, rng)
        groups: dict[Hashable, list[int]] = {}
        for number, image in enumerate(block):
            groups.setdefault(key_of(image), []).append(number)
        rows = list(groups.values())
        return [number for group in rng.permutation(len(rows)).tolist() for number in rows[group]]


def key_of(image: StreamedRow) -> Hashable:
    """What tells the image of a question: its id, or its embedded bytes or path; else its row."""
    if image.image_id is not None:
        return image.image_id
    picture = image.picture
    content, path = (picture["bytes"], picture["path"]) if isinstance(picture, dict) else (picture, None)
    return digest(content) if isinstance(content, bytes) else content or path or image.row
