"""`BlipForCaptioning` computes what the stock class computes, with fewer encoded images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, BlipProcessor

from blip_recipe.modeling import BlipForCaptioning, generate_captions, resize_position_embeddings
from blip_recipe.tiny import build_tiny_blip
from blip_recipe.trainer import token_losses

WORDS = ["a red circle left of a blue square", "two small green rings at the top"]
GREEDY = {"num_beams": 1, "max_length": 12, "min_length": 3, "do_sample": False}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> tuple[BlipForCaptioning, BlipProcessor, Path]:
    torch.manual_seed(0)
    model, processor = build_tiny_blip(WORDS)
    directory = tmp_path_factory.mktemp("captioner")
    model.eval().save_pretrained(directory)
    return model.use_sdpa(), processor, directory


def batch(counts: list[int], vocabulary: int) -> dict[str, torch.Tensor]:
    """Random pictures with `counts` captions each, of different lengths."""
    generator = torch.Generator().manual_seed(sum(counts))
    captions = sum(counts)
    lengths = torch.randint(3, 10, (captions,), generator=generator)
    mask = (torch.arange(9) < lengths[:, None]).long()
    return {
        "pixel_values": torch.randn(len(counts), 3, 96, 96, generator=generator),
        "input_ids": torch.randint(5, vocabulary, (captions, 9), generator=generator) * mask,
        "attention_mask": mask,
        "image_index": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
    }


@pytest.mark.parametrize("counts", [[1, 1], [3, 3], [7, 7, 7], [1, 2, 3, 4, 5, 6, 7], [5, 1], [2]])
def test_loss_and_gradients_equal_the_stock_model_on_the_same_pairs(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path], counts: list[int]
) -> None:
    model, _, directory = captioner
    stock = BlipForConditionalGeneration.from_pretrained(directory).eval()
    inputs = batch(counts, stock.config.text_config.vocab_size)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model.zero_grad()
    ours = token_losses(model(**inputs).logits, labels, 0.1).sum() / (labels[:, 1:] != -100).sum()
    ours.backward()
    pixels = inputs["pixel_values"][inputs["image_index"]]
    logits = stock(pixel_values=pixels, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    theirs = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    stock_gradients = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, stock_gradients[name], atol=1e-5, rtol=1e-4)


def test_saved_weights_and_names_are_the_stock_ones(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path],
) -> None:
    model, _, directory = captioner
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["BlipForConditionalGeneration"]
    saved = load_file(directory / "model.safetensors")
    stock = BlipForConditionalGeneration.from_pretrained(directory).state_dict()
    assert set(saved) <= set(stock)
    assert all(torch.equal(stock[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_equal_the_stock_model(captioner: tuple[BlipForCaptioning, BlipProcessor, Path], beams: int) -> None:
    model, processor, directory = captioner
    stock = BlipForConditionalGeneration.from_pretrained(directory).eval()
    pixels = batch([1] * 6, 30)["pixel_values"]
    decoding = {**GREEDY, "num_beams": beams}
    for prompt in ("", "a red "):
        ours = generate_captions(model, processor.tokenizer, pixels, prompt=prompt, **decoding)
        assert ours == generate_captions(stock, processor.tokenizer, pixels, prompt=prompt, **decoding)


def test_captions_come_without_the_prompt(captioner: tuple[BlipForCaptioning, BlipProcessor, Path]) -> None:
    model, processor, _ = captioner
    pixels = batch([1], 30)["pixel_values"]
    prompted = generate_captions(model, processor.tokenizer, pixels, prompt="two small green ", **GREEDY)
    assert not prompted[0].startswith("two small green")


def test_resized_position_embeddings_fit_the_new_pictures() -> None:
    torch.manual_seed(0)
    model, _ = build_tiny_blip(WORDS)
    before = model.vision_model.embeddings.position_embedding.detach().clone()
    resize_position_embeddings(model, 144)
    after = model.vision_model.embeddings.position_embedding
    assert after.shape[1] == 3 * 3 + 1
    assert torch.equal(after[:, 0], before[:, 0])
    assert model.config.vision_config.image_size == 144
    assert model.vision_model(torch.zeros(1, 3, 144, 144)).last_hidden_state.shape[1] == 10
