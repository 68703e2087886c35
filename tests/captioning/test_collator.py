"""Batches are built as the original code builds them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import BlipProcessor

from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.training.caption_collator import CaptionCollator

CAPTIONS = ["a red circle", "two blue squares on the left", "a picture of it"]


@pytest.fixture(scope="module")
def processor() -> BlipProcessor:
    return build_tiny_captioner(CAPTIONS)[1]


def row(number: int, *captions: str) -> dict[str, object]:
    return {
        "row": number,
        "image": torch.full((3, 30, 40 + number), 200, dtype=torch.uint8),
        "captions": list(captions),
    }


def collate(processor: BlipProcessor, *rows: dict[str, object], **options: object) -> dict[str, torch.Tensor]:
    return CaptionCollator(processor, normalize_captions=False, **options)(rows)  # type: ignore[arg-type]


def captions_of(batch: dict[str, torch.Tensor], image: int, name: str) -> list[torch.Tensor]:
    """`batch[name]` of each caption of an image, padding left out."""
    length = int((batch["labels"][image] != -100).nonzero()[-1]) + 1
    starts = [*(batch["position_ids"][image, :length] == 0).nonzero().flatten().tolist(), length]
    return [batch[name][image, start:end] for start, end in pairwise(starts)]


def test_each_image_is_a_row_with_its_captions_end_to_end(processor: BlipProcessor) -> None:
    batch = collate(processor, row(7, *CAPTIONS[:2]), row(3, CAPTIONS[2]))
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((2, 3, 96, 96), torch.uint8)
    assert batch["row"].tolist() == [7, 3]
    assert [len(captions_of(batch, image, "labels")) for image in (0, 1)] == [2, 1]
    assert captions_of(batch, 0, "position_ids")[1].tolist() == list(range(8))


def test_captions_begin_with_dec_and_end_with_a_predicted_sep(processor: BlipProcessor) -> None:
    batch = collate(processor, row(0, *CAPTIONS))
    tokenizer = processor.tokenizer
    every = zip(captions_of(batch, 0, "input_ids"), captions_of(batch, 0, "labels"), CAPTIONS, strict=True)
    for ids, labels, caption in every:
        assert ids[0] == tokenizer.bos_token_id
        assert labels[0] == -100
        assert tokenizer.decode(labels[1:-1]) == caption
        assert labels[-1] == tokenizer.sep_token_id


def test_padding_and_prompt_are_not_predicted(processor: BlipProcessor) -> None:
    batch = collate(processor, row(0, *CAPTIONS[:2]), row(1, CAPTIONS[0]), prompt="a picture of ")
    padding = batch["input_ids"] == processor.tokenizer.pad_token_id
    assert padding[1].any()
    assert (batch["labels"][padding] == -100).all()
    assert (batch["position_ids"][padding] == 0).all()
    for ids, labels, caption in zip(
        captions_of(batch, 0, "input_ids"), captions_of(batch, 0, "labels"), CAPTIONS[:2], strict=True
    ):
        assert (labels[:4] == -100).all()
        assert processor.tokenizer.decode(ids[1:-1]) == f"a picture of {caption}"
        assert (labels[4:] != -100).all()


@pytest.mark.parametrize("prompt", ["a picture of", "a picture of ", "A picture of  "])
def test_prompt_and_caption_are_separate_words(processor: BlipProcessor, prompt: str) -> None:
    batch = collate(processor, row(0, "red"), prompt=prompt)
    assert processor.tokenizer.decode(batch["input_ids"][0, 1:-1]) == "a picture of red"


def test_long_captions_are_cut_and_keep_their_sep(processor: BlipProcessor) -> None:
    batch = collate(processor, row(0, "red " * 30), max_length=10)
    assert batch["input_ids"].shape[1] == 10
    assert batch["input_ids"][0, -1] == processor.tokenizer.sep_token_id
