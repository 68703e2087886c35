"""Collate images, questions and answers into batches as BLIP was trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from blip_recipe.data.pixels import read_resized
from blip_recipe.models.text import IGNORED

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
    answer is the share of annotators who gave it (`data/vqa_dataset.py`).

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
            the device; `image_index` `(questions,)`; `input_ids` and `attention_mask`, each `(questions, question
            tokens)`; and `decoder_input_ids`, `decoder_position_ids`, `labels` and `answer_weights`, each `(questions,
            tokens)`. Positions restart at 0 in each answer. `answer_weights` holds the weight of its answer for each
            predicted token, and 0 elsewhere.
        """
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            **self._images(rows),
            **encode_questions(self.processor.tokenizer, [row["question"] for row in rows]),
            **self._answers([row["answers"] for row in rows]),
        }

    def _images(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        first: dict[Hashable, int] = {}
        index = [first.setdefault(row["image_key"], len(first)) for row in rows]
        images = [rows[index.index(number)]["image"] for number in range(len(first))]
        pixels = read_resized(images, self.processor.image_processor)
        return {"pixel_values": pixels, "image_index": torch.tensor(index)}

    def _answers(self, answers: list[list[str]]) -> dict[str, torch.Tensor]:
        shares = [{answer: count / len(each) for answer, count in Counter(each).items()} for each in answers]
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


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], max_length: int = MAX_ANSWER_LENGTH
) -> torch.Tensor:
    """Tokenise answers to padded token ids `(answers, tokens)`, for `BlipForAnswering.rank`."""
    ids = [torch.tensor(each) for each in answer_token_ids(tokenizer, answers, max_length)]
    return pad_sequence(ids, batch_first=True, padding_value=cast("Any", tokenizer).pad_token_id)


def answer_token_ids(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], max_length: int) -> list[list[int]]:
    """The token ids of each answer: `[DEC]`, answer, `[SEP]`."""
    encoded = tokenizer(list(answers), truncation=True, max_length=max_length).input_ids
    return [[cast("Any", tokenizer).bos_token_id, *each[1:]] for each in encoded]
