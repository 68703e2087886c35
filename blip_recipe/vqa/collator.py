"""Rows of questions to a batch, exactly as BLIP was trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from blip_recipe.data.pixels import read_pixels
from blip_recipe.modeling import IGNORED
from blip_recipe.processing import resize_pixels, stack_pixels
from blip_recipe.vqa.tokens import QUESTION_START

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from transformers import ProcessorMixin

MAX_QUESTION_LENGTH = 35
"""Longest question in tokens, `[ENC]` and `[SEP]` included (`models/blip_vqa.py` of the original)."""


@dataclass
class AnswerCollator:
    """Batches rows of `QuestionDataset`: one row a question, its different answers one after the other.

    Questions and answers are tokenised as in the original repository (`models/blip_vqa.py`, `BLIP_VQA.forward`):
    questions begin with `[ENC]`, answers with `[DEC]`, and the `[SEP]` of an answer is predicted. An answer weighs what
    share of the annotators gave it (`data/vqa_dataset.py`).

    Args:
        processor: BLIP's image processor and tokenizer.
        bos_token_id: `[DEC]`, the decoder's first token, as the model's `text_config` has it.
        max_length: Longest answer in tokens.
    """

    processor: ProcessorMixin
    bos_token_id: int
    max_length: int = 40

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of `rows`: each `row`, `image_key`, `image`, `question` and `answers`.

        Rows with the same `image_key` share an image, which is the first one's.

        Returns:
            `row` `(questions,)`; `pixel_values` `(images, 3, height, width)` of bytes, which the trainer normalises on
            the device, and `image_index` `(questions,)`; `input_ids` and `attention_mask` `(questions, question
            tokens)`; and, each `(questions, tokens)`, `decoder_input_ids`, `decoder_position_ids` counted anew in each
            answer, `labels`, and `answer_weights`, that of its answer for each predicted token and 0 elsewhere.
        """
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            **self._images(rows),
            **self.encode_questions([row["question"] for row in rows]),
            **self._answers([row["answers"] for row in rows]),
        }

    def _images(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        first: dict[Hashable, int] = {}
        index = [first.setdefault(row["image_key"], len(first)) for row in rows]
        images = [rows[index.index(number)]["image"] for number in range(len(first))]
        pixels = [image if isinstance(image, torch.Tensor) else read_pixels(image) for image in images]
        resized = [resize_pixels(each, self.processor.image_processor) for each in pixels]
        return {"pixel_values": stack_pixels(resized), "image_index": torch.tensor(index)}

    def encode_questions(self, questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` `(questions, tokens)`."""
        tokenizer = self.processor.tokenizer
        encoded = tokenizer(
            list(questions), padding=True, truncation=True, max_length=MAX_QUESTION_LENGTH, return_tensors="pt"
        )
        encoded.input_ids[:, 0] = tokenizer.convert_tokens_to_ids(QUESTION_START)
        return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}

    def encode_answers(self, answers: Sequence[str]) -> torch.Tensor:
        """Token ids `(answers, tokens)`, padded, to be ranked."""
        ids = [torch.tensor(each) for each in self._answer_ids(answers)]
        return pad_sequence(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)

    def _answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        encoded = self.processor.tokenizer(list(answers), truncation=True, max_length=self.max_length).input_ids
        return [[self.bos_token_id, *each[1:]] for each in encoded]

    def _answers(self, answers: list[list[str]]) -> dict[str, torch.Tensor]:
        shares = [{answer: count / len(each) for answer, count in Counter(each).items()} for each in answers]
        encoded = iter(self._answer_ids(list(chain.from_iterable(shares))))
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
