"""Batches of questions are what BLIP was trained on: first tokens, shares of answers, one picture for its questions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import ProcessorMixin
from vqa_models import WORDS

from blip_recipe.vqa.collator import MAX_QUESTION_LENGTH, AnswerCollator, encode_answers
from blip_recipe.vqa.tiny import build_tiny_answerer


@pytest.fixture(scope="module")
def collator() -> AnswerCollator:
    return AnswerCollator(build_tiny_answerer(WORDS)[1], max_length=6)


def row(question: str, answers: list[str], *, key: Any = 0, shade: int = 0) -> dict[str, Any]:
    image = torch.full((3, 96, 96), shade, dtype=torch.uint8)
    return {"row": 7, "image_key": key, "image": image, "question": question, "answers": answers}


def words(processor: ProcessorMixin, ids: torch.Tensor) -> str:
    return " ".join(processor.tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_tokens_positions_labels_and_weights_by_hand(collator: AnswerCollator) -> None:
    rows = [row("what is it", ["cat", "a dog", "cat", "cat"]), row("how many", ["two"], key=1)]
    batch, processor = collator(rows), collator.processor
    assert batch["row"].tolist() == [7, 7]
    assert words(processor, batch["input_ids"][0]) == "[ENC] what is it [SEP]"
    assert words(processor, batch["input_ids"][1]) == "[ENC] how many [SEP] [PAD]"
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    answers = batch["decoder_input_ids"]
    assert words(processor, answers[0]) == "[DEC] cat [SEP] [DEC] a dog [SEP]"
    assert words(processor, answers[1]) == "[DEC] two [SEP] [PAD] [PAD] [PAD] [PAD]"
    assert batch["decoder_position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0, 0]]
    predicted = batch["labels"] != -100
    assert predicted.int().tolist() == [[0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0]]
    assert torch.equal(batch["labels"][predicted], answers[predicted])
    assert batch["answer_weights"].tolist() == [[0, 0.75, 0.75, 0, 0.25, 0.25, 0.25], [0, 1, 1, 0, 0, 0, 0]]


def test_questions_of_one_picture_share_it(collator: AnswerCollator) -> None:
    keys, shades = ["a", "b", "a", "b", "c"], [10, 20, 10, 20, 30]
    rows = [row("how many", ["two"], key=key, shade=shade) for key, shade in zip(keys, shades, strict=True)]
    batch = collator(rows)
    assert batch["pixel_values"].shape == (3, 3, 96, 96)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["image_index"].tolist() == [0, 1, 0, 1, 2]
    assert [int(batch["pixel_values"][image].float().mean()) for image in batch["image_index"]] == shades


def test_long_questions_and_answers_are_cut_and_keep_their_ends(collator: AnswerCollator) -> None:
    batch = collator([row("how many " * 40, ["two " * 40])])
    assert batch["input_ids"].shape[1] == MAX_QUESTION_LENGTH
    assert words(collator.processor, batch["decoder_input_ids"][0]) == "[DEC] two two two two [SEP]"


def test_an_empty_answer_is_its_end(collator: AnswerCollator) -> None:
    assert (
        words(collator.processor, encode_answers(collator.processor.tokenizer, ["", "a dog"])[0])
        == "[DEC] [SEP] [PAD] [PAD]"
    )
