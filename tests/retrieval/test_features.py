"""Features of pictures and texts are those of the stock classes, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import draw_pictures, save_captioner
from PIL import Image
from retrievers import TEXTS, build_retriever
from torch.nn.functional import normalize
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)
from vqa_models import save_answerer

from blip_recipe import BlipFeatures, RecipeError, load_features
from blip_recipe.models.processors import save_processor


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("retriever")
    model, processor = build_retriever()
    model.save_pretrained(directory)
    save_processor(processor, directory)
    return directory


@pytest.fixture(scope="module")
def features(retriever: Path) -> BlipFeatures:
    return load_features(retriever, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pictures(tmp_path_factory.mktemp("pictures"), 4)


@torch.no_grad()
def test_features_equal_those_of_the_stock_class(features: BlipFeatures, retriever: Path, pictures: list[Path]) -> None:
    texts = TEXTS[:4]
    stock = BlipForImageTextRetrieval.from_pretrained(retriever)
    processor = AutoProcessor.from_pretrained(retriever)
    opened = [Image.open(path).convert("RGB") for path in pictures]
    inputs = processor(images=opened, text=texts, padding=True, return_tensors="pt")
    images, words, pairs = features.image(pictures), features.text(texts), features.multimodal(pictures, texts)
    assert images.embeds is not None
    assert words.embeds is not None
    assert pairs.embeds is not None
    assert words.attention_mask is not None

    contrast = stock(**inputs, use_itm_head=False)
    assert torch.equal(images.states, contrast.last_hidden_state)
    assert torch.equal(words.states, contrast.question_embeds)
    assert torch.equal(images.embeds, normalize(stock.vision_proj(contrast.last_hidden_state[:, 0]), dim=-1))
    assert torch.equal(words.embeds, normalize(stock.text_proj(contrast.question_embeds[:, 0]), dim=-1))
    assert torch.equal(images.embeds @ words.embeds.T, contrast.itm_score)
    assert images.attention_mask is None
    assert torch.equal(words.attention_mask, inputs["attention_mask"])

    inputs["input_ids"][:, 0] = stock.config.text_config.bos_token_id + 1
    matched = stock(**inputs)
    assert torch.equal(pairs.states, matched.question_embeds)
    assert torch.equal(pairs.embeds, matched.question_embeds[:, 0])
    assert torch.equal(stock.itm_head(pairs.embeds), matched.itm_score)
    tokens = inputs["input_ids"].shape[1]
    assert images.states.shape == (4, 5, 128)
    assert words.states.shape == pairs.states.shape == (4, tokens, 128)
    assert images.embeds.shape == words.embeds.shape == (4, stock.config.image_text_hidden_size)
    assert pairs.embeds.shape == (4, 128)


def test_one_picture_and_batches_give_the_same(features: BlipFeatures, pictures: list[Path]) -> None:
    whole, parts = features.image(pictures), features.image(pictures, batch_size=3)
    assert parts.states == pytest.approx(whole.states, abs=1e-5)
    assert features.image(pictures[2]).states == pytest.approx(whole.states[2:3], abs=1e-5)
    together = features.multimodal(pictures, TEXTS[:4])
    words = features.text(TEXTS)
    assert together.embeds is not None
    assert words.embeds is not None
    assert features.multimodal(pictures, TEXTS[:4], batch_size=3).embeds == pytest.approx(together.embeds, abs=1e-5)
    assert features.multimodal(pictures[0], TEXTS[0]).embeds == pytest.approx(together.embeds[:1], abs=1e-5)
    assert features.text(TEXTS, batch_size=3).embeds == pytest.approx(words.embeds, abs=1e-5)
    assert features.text(TEXTS[0]).embeds == pytest.approx(words.embeds[:1], abs=1e-5)


def test_a_captioner_and_an_answerer_give_image_states_alone(tmp_path: Path, pictures: list[Path]) -> None:
    kinds = [
        (save_captioner(tmp_path / "captioner"), BlipForConditionalGeneration, "a captioner"),
        (save_answerer(tmp_path / "answerer"), BlipForQuestionAnswering, "a question answerer"),
    ]
    for directory, stock_class, kind in kinds:
        found = load_features(directory, device="cpu")
        pixels = AutoProcessor.from_pretrained(directory).image_processor(
            [Image.open(path).convert("RGB") for path in pictures], return_tensors="pt"
        )
        with torch.no_grad():
            stock: Any = stock_class.from_pretrained(directory)
            expected = stock.vision_model(**pixels).last_hidden_state
        images = found.image(pictures)
        assert torch.equal(images.states, expected)
        assert images.embeds is None
        for compute in (lambda: found.text("a dog"), lambda: found.multimodal(pictures[0], "a dog")):  # noqa: B023
            with pytest.raises(RecipeError, match=f"The model is {kind} .*features of images only.*blip-itm-base-coco"):
                compute()


def test_wrong_inputs_are_explained(features: BlipFeatures, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="4 pictures and 1 texts: expected a text for each picture"):
        features.multimodal(pictures, "a dog")
    with pytest.raises(RecipeError, match="There are no pictures"):
        features.image([])
    with pytest.raises(RecipeError, match="There are no texts"):
        features.text([])
    with pytest.raises(RecipeError, match=r"none\.png cannot be read"):
        features.image(tmp_path / "none.png")
