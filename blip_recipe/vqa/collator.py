"""Collate images, questions and answers into batches as BLIP was trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from blip_recipe.data.pixels import read_resized
from blip_recipe.errors import RecipeError
from blip_recipe.models.text import IGNORED
from blip_recipe.training.texts import MAX_POSITIONS, shorten

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from transformers import PreTrainedTokenizerBase, ProcessorMixin

MAX_QUESTION_LENGTH = 35
"""Maximum question length in tokens, `[ENC]` and `[SEP]` included (`models/blip_vqa.py` of the original)."""
MAX_ANSWER_LENGTH = 40
"""Default maximum answer length in tokens; the original does not truncate answers."""


@dataclass
class AnswerCollator:
    """Batches rows of `QuestionDataset`: one row per question, with its different answers packed end to end.

    Questions and answers are tokenised as in the original repository (`models/blip_vqa.py`, `BLIP_VQA.forward`):
    questions start with `[ENC]`, answers with `[DEC]`, and the `[SEP]` of an answer is predicted. The weight of an
    answer is the share of annotators who gave it (`data/vqa_dataset.py`), times the `answer_weight` of its row.

    Args:
        processor: The image processor and tokenizer, after `use_question_token`.
        max_length: Maximum answer length in tokens.
    """

    processor: ProcessorMixin
    max_length: int = MAX_ANSWER_LENGTH

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `rows` of `row`, `image_key`, `image`, `question` and `answers`.

        Rows with the same `image_key` share the image of the first of them.

        Returns:
            `row` `(questions,)`; `pixel_values` `(images, 3, height, width)` in uint8, which the trainer normalises on
            the device, or `image_embeds` `(images, patches, width)` if the rows have them; `image_index`
            `(questions,)`; `input_ids` and `attention_mask`, each `(questions, question tokens)`; and
            `decoder_input_ids`, `decoder_position_ids`, `labels` and `answer_weights`, each `(questions, tokens)`.
            Positions restart at 0 in each answer. `answer_weights` holds the weight of its answer for each predicted
            token, and 0 elsewhere. Without answers, the last four are missing.
        """
        answers = [row["answers"] for row in rows]
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            **self._images(rows),
            **encode_questions(self.processor.tokenizer, [row["question"] for row in rows]),
            **({} if None in answers else self._answers(answers, [row.get("answer_weight", 1.0) for row in rows])),
        }

    def _images(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        first: dict[Hashable, int] = {}
        index = [first.setdefault(row["image_key"], len(first)) for row in rows]
        shown = [rows[index.index(number)] for number in range(len(first))]
        places = {"image_index": torch.tensor(index)}
        if "image_embeds" in shown[0]:
            return {"image_embeds": torch.stack([row["image_embeds"] for row in shown]), **places}
        return {"pixel_values": read_resized([row["image"] for row in shown], self.processor.image_processor), **places}

    def _answers(self, answers: list[list[str]], row_weights: list[float]) -> dict[str, torch.Tensor]:
        shares = [
            {answer: row_weight * count / len(each) for answer, count in Counter(each).items()}
            for each, row_weight in zip(answers, row_weights, strict=True)
        ]
        texts = list(chain.from_iterable(shares))
        encoded = iter(answer_token_ids(self.processor.tokenizer, texts, self.max_length))
        padding: dict[str, Any] = {
            "decoder_input_ids": self.processor.tokenizer.pad_token_id,
            "decoder_position_ids": 0,
            "labels": IGNORED,
            "answer_weights": 0.0,
        }
        batch: dict[str, list[torch.Tensor]] = {name: [] for name in padding}
        for share in shares:
            ids = [next(encoded) for _ in share]
            weights = [[0.0] + [weight] * (len(each) - 1) for weight, each in zip(share.values(), ids, strict=True)]
            batch["decoder_input_ids"].append(torch.tensor(list(chain(*ids))))
            batch["decoder_position_ids"].append(torch.cat([torch.arange(len(each)) for each in ids]))
            batch["labels"].append(torch.tensor(list(chain(*([IGNORED, *each[1:]] for each in ids)))))
            batch["answer_weights"].append(torch.tensor(list(chain(*weights))))
        return {
            name: pad_sequence(batch[name], batch_first=True, padding_value=value) for name, value in padding.items()
        }


def encode_questions(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> dict[str, torch.Tensor]:
    """Tokenise questions to `input_ids`, which start with `[ENC]`, and `attention_mask`, each `(questions, tokens)`."""
    encoded = tokenizer(
        list(questions), padding=True, truncation=True, max_length=MAX_QUESTION_LENGTH, return_tensors="pt"
    )
    return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


def encode_answers(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> torch.Tensor:
    """Tokenise answers to padded token ids `(answers, tokens)`, for `BlipForAnswering.rank`.

    Raises:
        RecipeError: An answer is longer than BLIP reads.
    """
    ids = [torch.tensor(each) for each in answer_token_ids(tokenizer, answers)]
    for answer, each in zip(answers, ids, strict=True):
        if len(each) > MAX_POSITIONS:
            raise RecipeError(
                f"The list of answers has one of {len(each):,} tokens, {shorten(answer)}: expected at most "
                f"{MAX_POSITIONS}."
            )
    return pad_sequence(ids, batch_first=True, padding_value=cast("Any", tokenizer).pad_token_id)


def answer_token_ids(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], max_length: int | None = None
) -> list[list[int]]:
    """The token ids of each answer: `[DEC]`, answer, `[SEP]`. They are cut to `max_length`, if it is given."""
    encoded = tokenizer(list(answers), truncation=max_length is not None, max_length=max_length, verbose=False)
    return [[cast("Any", tokenizer).bos_token_id, *each[1:]] for each in encoded.input_ids]
