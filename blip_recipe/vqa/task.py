"""The question answering task of recipes."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from blip_recipe.data.captions import normalize_question
from blip_recipe.data.load import load_role
from blip_recipe.errors import RecipeError
from blip_recipe.training.task import Task
from blip_recipe.vqa.answer_lists import FROM_TRAINING
from blip_recipe.vqa.checks import STREAMED_LIST, answers_of_training
from blip_recipe.vqa.data import is_answered, load_questions
from blip_recipe.vqa.questions import questions_vocabulary
from blip_recipe.vqa.streams import open_questions
from blip_recipe.vqa.texts import validate_question
from blip_recipe.vqa.tiny import build_tiny_answerer
from blip_recipe.vqa.trainer import VqaTrainer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.data.arguments import DataArguments
    from blip_recipe.data.shards import ShardedSplit
    from blip_recipe.models.arguments import ModelArguments
    from blip_recipe.training.arguments import BlipArguments
    from blip_recipe.vqa.arguments import VqaArguments, VqaDataArguments
    from blip_recipe.vqa.modeling import BlipForAnswering


class Answering(Task):
    """Visual question answering."""

    trainer = VqaTrainer

    def load_split(self, arguments: VqaDataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
        """Load rows of `image`, `image_id`, `question_id`, `question` and `answers`."""
        return load_questions(arguments, split, max_samples=max_samples)

    def check(self, model: ModelArguments, data: DataArguments, training: Any) -> None:
        """Check that a stream needs no list of all its answers, which would have to be read before."""
        super().check(model, data, training)
        if data.is_streamed and training.answer_list == FROM_TRAINING:
            raise RecipeError(STREAMED_LIST)

    def open_stream(self, arguments: VqaDataArguments) -> ShardedSplit:
        """Open the training split as a stream of questions."""
        return open_questions(arguments)

    def validate_row(self, record: Mapping[str, Any]) -> str | None:
        """Check that a row has a question and answers, and that none is too long."""
        return validate_question(record)

    def has_references(self, rows: Dataset) -> bool:
        """Whether the questions have answers."""
        return is_answered(rows)

    def prepare_scoring(self, data: VqaDataArguments, training: VqaArguments) -> None:
        """Make the list of answers of the training questions, if it is asked for."""
        if training.answer_list == FROM_TRAINING:
            training.answers = answers_of_training(
                training, load_role(data, "train", self.load_split, self.open_stream)
            )

    def vocabulary_texts(self, rows: Dataset, arguments: BlipArguments, *, drawn: bool) -> Iterable[str]:
        """Questions and answers; with `drawn`, all words of drawn scenes."""
        if drawn:
            return questions_vocabulary()
        return chain(map(normalize_question, rows["question"]), chain.from_iterable(rows["answers"]))

    def build_tiny(self, texts: Iterable[str], image_size: int | None) -> tuple[BlipForAnswering, BlipProcessor]:
        """Build the tiny model."""
        return build_tiny_answerer(texts, image_size)
