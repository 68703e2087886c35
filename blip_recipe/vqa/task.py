"""The task that answers questions: BLIP's image-grounded encoder reads them, its decoder answers."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from blip_recipe.captioning.modeling import decode_captions
from blip_recipe.data.checks import MAX_CHARACTERS
from blip_recipe.data.images import open_image
from blip_recipe.errors import RecipeError
from blip_recipe.recipe.parsing import SHAPES
from blip_recipe.training.task import Task
from blip_recipe.vqa.collator import encode_questions
from blip_recipe.vqa.data import load_questions, normalize_question
from blip_recipe.vqa.dataset import question_datasets
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.questions import questions_vocabulary
from blip_recipe.vqa.tiny import build_tiny_answerer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.models.loading import CaptionSettings
    from blip_recipe.recipe.parsing import DataArguments, Recipe
    from blip_recipe.training.trainer import BlipTrainer


class Answering(Task):
    """Answers to questions about pictures."""

    name = "vqa"
    model_class = BlipForAnswering
    key = "question_id"
    texts = "answers"
    try_it = 'answer {model} PICTURE "QUESTION"'

    def check(self, recipe: Recipe[Any]) -> None:
        """See that no key is given that questions have no use for."""
        super().check(recipe)
        for key in ("captions_per_image", "caption_column"):
            if getattr(recipe.data, key) is not None:
                raise RecipeError(
                    f"task is 'vqa' and {key} is given: a question brings all its answers (question_column, "
                    "answer_column). Leave it out."
                )

    def load_split(self, arguments: DataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
        """Rows of `image`, `image_id`, `question_id`, `question` and `answers`."""
        return load_questions(arguments, split, max_samples=max_samples)

    def row_fault(self, record: Mapping[str, Any]) -> str | None:
        """Whether a row has a question and answers, and neither is a whole file."""
        if not record["question"]:
            return "it has no question"
        if not record["answers"]:
            return "it has no answer"
        longest = max(map(len, [record["question"], *record["answers"]]))
        if longest > MAX_CHARACTERS:
            return f"it has a text of {longest:,} characters: expected at most {MAX_CHARACTERS:,}"
        return None

    def words(self, rows: Dataset, arguments: DataArguments) -> Iterable[str]:
        """Questions and answers, with their punctuation as words; all words of drawn scenes."""
        texts: Iterable[str] = chain(map(normalize_question, rows["question"]), chain.from_iterable(rows["answers"]))
        if arguments.dataset_name == SHAPES:
            texts = questions_vocabulary()
        return (" ".join(re.findall(r"\w+|[^\w\s]", text)) for text in texts)

    def build_tiny(self, words: Iterable[str], image_size: int | None) -> tuple[BlipForAnswering, BlipProcessor]:
        """The embedded model."""
        return build_tiny_answerer(words, image_size)

    def datasets(self, splits: Mapping[str, Dataset], recipe: Recipe[Any], processor: BlipProcessor) -> dict[str, Any]:
        """`QuestionDataset`s."""
        return {**question_datasets(splits, recipe.data, processor, recipe.training.seed)}

    def trainer(self, recipe: Recipe[Any]) -> Callable[..., BlipTrainer]:
        """`AnswerTrainer`."""
        from blip_recipe.vqa.trainer import AnswerTrainer

        return AnswerTrainer

    def say(self, model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: CaptionSettings) -> str:
        """The answer to its question."""
        pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
        asked = encode_questions(processor.tokenizer, [normalize_question(row["question"])])
        inputs = {name: values.to(model.device) for name, values in {**asked, "pixel_values": pixel_values}.items()}
        return decode_captions(processor.tokenizer, model.generate(**inputs, **settings.generate_kwargs()))[0]

    def show(self, prediction: Mapping[str, Any]) -> Mapping[str, Any]:
        """The question in front of what was answered, and what the annotators say."""
        counts = {answer: prediction["answers"].count(answer) for answer in prediction["answers"]}
        return {
            "question_id": prediction["question_id"],
            "image_id": prediction["image_id"],
            "caption": f"{prediction['question']} {prediction['answer']}",
            "references": sorted(counts, key=lambda answer: -counts[answer]),
            "scores": prediction["scores"],
        }
