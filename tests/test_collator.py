"""Batches are built as the original code builds them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import BlipProcessor

from blip_recipe.collator import CaptionCollator
from blip_recipe.tiny import build_tiny_blip

CAPTIONS = ["a red circle", "two blue squares on the left", "a picture of it"]


@pytest.fixture(scope="module")
def processor() -> BlipProcessor:
    return build_tiny_blip(CAPTIONS)[1]


def row(number: int, *captions: str) -> dict[str, object]:
    return {"row": number, "image": Image.new("RGB", (40, 30), "red"), "captions": list(captions)}


def collate(processor: BlipProcessor, *rows: dict[str, object], **options: object) -> dict[str, torch.Tensor]:
    return CaptionCollator(processor, processor.tokenizer.bos_token_id, **options)(rows)  # type: ignore[arg-type]


def test_each_image_is_there_once_and_every_caption_knows_its_image(processor: BlipProcessor) -> None:
    batch = collate(processor, row(7, *CAPTIONS[:2]), row(3, CAPTIONS[2]))
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    assert batch["image_index"].tolist() == [0, 0, 1]
    assert batch["row"].tolist() == [7, 3]
    assert len(batch["input_ids"]) == 3


def test_captions_begin_with_dec_and_end_with_a_predicted_sep(processor: BlipProcessor) -> None:
    batch = collate(processor, row(0, *CAPTIONS))
    tokenizer = processor.tokenizer
    for ids, labels, caption in zip(batch["input_ids"], batch["labels"], CAPTIONS, strict=True):
        assert ids[0] == tokenizer.bos_token_id
        predicted = labels[labels != -100]
        assert tokenizer.decode(predicted[:-1]) == caption
        assert predicted[-1] == tokenizer.sep_token_id


def test_padding_and_prompt_are_not_predicted(processor: BlipProcessor) -> None:
    batch = collate(processor, row(0, *CAPTIONS[:2]), prompt="a picture of ")
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert (batch["labels"][:, :4] == -100).all()
    assert processor.tokenizer.decode(batch["input_ids"][0, 1:7]) == "a picture of a red circle"
    assert (batch["labels"][:, 4] != -100).all()


@pytest.mark.parametrize("prompt", ["a picture of", "a picture of ", "A picture of  "])
def test_prompt_and_caption_are_separate_words(processor: BlipProcessor, prompt: str) -> None:
    batch = collate(processor, row(0, "red"), prompt=prompt)
    assert processor.tokenizer.decode(batch["input_ids"][0, 1:-1]) == "a picture of red"


def test_long_captions_are_cut_and_keep_their_sep(processor: BlipProcessor) -> None:
    batch = collate(processor, row(0, "red " * 30), max_length=10)
    assert batch["input_ids"].shape[1] == 10
    assert batch["input_ids"][0, -1] == processor.tokenizer.sep_token_id
