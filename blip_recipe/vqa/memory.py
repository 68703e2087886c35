"""The largest step of question answering, to estimate its memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.training.memory import empty_pixels
from blip_recipe.vqa.collator import MAX_QUESTION_LENGTH, answer_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from blip_recipe.training.memory import Step
    from blip_recipe.vqa.training_arguments import VqaTrainingArguments

SAMPLE = 1000
"""Number of questions whose tokens are counted."""


def answer_step(args: VqaTrainingArguments, rows: Any, tokenizer: PreTrainedTokenizerBase) -> Step:
    """The step with the longest texts of the first `SAMPLE` rows of `image_id`, `question` and `answers`.

    Each question has a picture of its own, but with `group_questions`, the questions of an image share it.
    """
    sample = rows[range(min(SAMPLE, len(rows)))]
    encoded = tokenizer(sample["question"], truncation=True, max_length=MAX_QUESTION_LENGTH).input_ids
    asked = max(map(len, encoded))
    different = [list(dict.fromkeys(answers)) for answers in sample["answers"]]
    lengths = [answer_token_ids(tokenizer, answers, args.max_caption_length) for answers in different]
    said = max(sum(map(len, ids)) for ids in lengths)
    questions = args.train_batch_size
    images = questions
    if args.group_questions:
        images = min(questions, math.ceil(questions * len(set(sample["image_id"])) / len(sample["image_id"])) + 1)
    return _step(questions, images, asked, said)


def _step(questions: int, images: int, question_tokens: int, answer_tokens: int) -> Step:
    def step(model: Any, device: torch.device) -> torch.Tensor:
        asked = torch.ones(questions, question_tokens, dtype=torch.int64, device=device)
        said = torch.zeros(questions, answer_tokens, dtype=torch.int64, device=device)
        index = torch.zeros(questions, dtype=torch.int64, device=device)
        return model(
            pixel_values=empty_pixels(model, images, device),
            input_ids=asked,
            attention_mask=asked,
            decoder_input_ids=said,
            decoder_position_ids=said,
            image_index=index,
        ).logits.flatten(0, 1)

    return step
