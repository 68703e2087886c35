"""`BlipForCaptioning` computes what the stock class computes, with fewer encoded images."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import BlipForConditionalGeneration, BlipProcessor

from blip_recipe.captioning.modeling import BlipForCaptioning, mean_log_probs
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.models.captioner import generate_captions, generate_token_ids
from blip_recipe.models.vision import resize_position_embeddings

WORDS = ["a red circle left of a blue square", "two small green rings at the top"]
GREEDY = {"num_beams": 1, "max_length": 12, "min_length": 3, "do_sample": False}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> tuple[BlipForCaptioning, BlipProcessor, Path]:
    torch.manual_seed(0)
    model, processor = build_tiny_captioner(WORDS)
    directory = tmp_path_factory.mktemp("captioner")
    model.eval().save_pretrained(directory)
    return model.use_sdpa(), processor, directory


def batch(counts: list[int], vocabulary: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random pictures with `counts` captions each, of different lengths: a row an image, and a row a caption."""
    generator = torch.Generator().manual_seed(sum(counts))
    lengths = torch.randint(3, 10, (sum(counts),), generator=generator)
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids = torch.randint(5, vocabulary, (sum(counts), 9), generator=generator) * mask
    pixels = torch.randn(len(counts), 3, 96, 96, generator=generator)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100
    captions = [(ids[row, :length], torch.arange(length), labels[row, :length]) for row, length in enumerate(lengths)]
    rows = iter(captions)
    images = [[torch.cat(parts) for parts in zip(*(next(rows) for _ in range(count)), strict=True)] for count in counts]
    names = {"input_ids": 0, "position_ids": 0, "labels": -100}
    together = {
        name: pad_sequence([image[number] for image in images], batch_first=True, padding_value=padding)
        for number, (name, padding) in enumerate(names.items())
    }
    alone = {
        "pixel_values": pixels.repeat_interleave(torch.tensor(counts), 0),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
    }
    return {"pixel_values": pixels, **together}, alone


def stock_loss(stock: BlipForConditionalGeneration, alone: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: values for name, values in alone.items() if name != "labels"}
    logits = stock(**inputs).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), alone["labels"][:, 1:].flatten(), label_smoothing=0.1)


def our_loss(model: BlipForCaptioning, together: dict[str, torch.Tensor]) -> torch.Tensor:
    losses = model(**together, label_smoothing=0.1).token_losses
    return losses.sum() / (together["labels"][:, 1:] != -100).sum()


@pytest.mark.parametrize("attention", ["sdpa", "eager", "sdpa, gradient checkpointing"])
@pytest.mark.parametrize("counts", [[1, 1], [3, 3], [7, 7, 7], [1, 2, 3, 4, 5, 6, 7], [5, 1], [2]])
def test_loss_and_gradients_equal_the_stock_model_on_the_same_pairs(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path], counts: list[int], attention: str
) -> None:
    directory = captioner[2]
    model = without_dropout(BlipForCaptioning.from_pretrained(directory))
    if attention != "eager":
        model.use_sdpa()
    if "checkpointing" in attention:
        model.activation_checkpointing_enable({"use_reentrant": False})
    stock = BlipForConditionalGeneration.from_pretrained(directory).eval()
    together, alone = batch(counts, stock.config.text_config.vocab_size)
    ours, theirs = our_loss(model, together), stock_loss(stock, alone)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    stock_gradients = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    ours_with_gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours_with_gradient.keys() == stock_gradients.keys()
    for name, gradient in ours_with_gradient.items():
        torch.testing.assert_close(gradient, stock_gradients[name], atol=1e-5, rtol=1e-4)


def without_dropout(model: BlipForCaptioning) -> BlipForCaptioning:
    """In training mode, as checkpointing asks for, yet computing what evaluation does."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def test_a_caption_sees_neither_its_neighbours_nor_padding(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path],
) -> None:
    model, _, _ = captioner
    together, _ = batch([3, 1], 30)
    losses = model(**together).token_losses
    changed = {name: values.clone() for name, values in together.items()}
    first = int((together["position_ids"][0] == 0).nonzero()[1])
    changed["input_ids"][0, first:] = 7
    torch.testing.assert_close(model(**changed).token_losses[0, : first - 1], losses[0, : first - 1])
    assert not torch.allclose(model(**changed).token_losses[0, first:], losses[0, first:])


def test_attention_maps_are_the_stock_ones_when_asked_for(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path],
) -> None:
    model, _, directory = captioner
    stock = BlipForConditionalGeneration.from_pretrained(directory).eval()
    _, alone = batch([1, 1], 30)
    inputs = {name: values for name, values in alone.items() if name != "labels"}
    ours, theirs = model(**inputs, output_attentions=True), stock(**inputs, output_attentions=True)
    assert len(ours.attentions) == stock.config.vision_config.num_hidden_layers
    for map_of_ours, map_of_theirs in zip(ours.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(map_of_ours, map_of_theirs)
    assert [each.shape for each in ours.cross_attentions] == [(2, 4, 9, 5)] * 2
    torch.testing.assert_close(ours.cross_attentions[0].sum(-1), torch.ones(2, 4, 9))
    assert model.uses_sdpa
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-4)


def test_saved_weights_and_names_are_the_stock_ones(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path],
) -> None:
    model, _, directory = captioner
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["BlipForConditionalGeneration"]
    saved = load_file(directory / "model.safetensors")
    stock = BlipForConditionalGeneration.from_pretrained(directory).state_dict()
    assert set(saved) <= set(stock)
    assert all(torch.equal(stock[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("prompt", ["", "a red "])
@pytest.mark.parametrize("beams", [1, 3, 5])
def test_captions_equal_the_stock_model(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path], beams: int, prompt: str
) -> None:
    model, processor, directory = captioner
    stock = BlipForConditionalGeneration.from_pretrained(directory).eval()
    pixels = batch([1] * 6, 30)[0]["pixel_values"]
    decoding: dict[str, Any] = {**GREEDY, "num_beams": beams, "num_return_sequences": beams}
    ours = generate_captions(model, processor.tokenizer, pixels, prompt=prompt, **decoding)
    assert ours == generate_captions(stock, processor.tokenizer, pixels, prompt=prompt, **decoding)
    embeds = model.vision_model(pixels).last_hidden_state
    assert ours == generate_captions(model, processor.tokenizer, embeds, prompt=prompt, **decoding)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("width", [32, 48])
def test_captions_are_the_same_with_and_without_keys_and_values(beams: int, width: int) -> None:
    """An adapter needs the keys and values of the image; without one, a CPU reads the embeddings."""
    torch.manual_seed(3)  # no two words are about equally likely; with seed 0, rounding chooses one
    tiny, processor = build_tiny_captioner(WORDS)
    tiny.config.vision_config.hidden_size = tiny.config.text_config.encoder_hidden_size = width
    model = BlipForCaptioning(tiny.config).eval().use_sdpa()
    embeds = torch.randn(6, 37, width, generator=torch.Generator().manual_seed(1))
    decoding: dict[str, Any] = {**GREEDY, "num_beams": beams, "num_return_sequences": beams}
    for attention in (layer.crossattention.self for layer in model.text_decoder.bert.encoder.layer):
        for weight in attention.parameters():
            nn.init.normal_(weight, std=0.3)
        hidden = torch.randn(6 * beams, 1, attention.query.in_features)
        each = embeds.repeat_interleave(beams, 0)
        expected = attention(hidden, encoder_hidden_states=each)[0]
        torch.testing.assert_close(attention._attend_to(embeds, hidden), expected, atol=1e-5, rtol=1e-4)
    assert model._image_cache(embeds).image_embeds is embeds
    without = generate_captions(model, processor.tokenizer, embeds, prompt="a red ", **decoding)
    adapted = get_peft_model(model, LoraConfig(target_modules=["key", "value"])).eval()
    assert model._image_cache(embeds).image_embeds is None
    assert generate_captions(adapted, processor.tokenizer, embeds, prompt="a red ", **decoding) == without
    assert len(set(without)) > 1, "the test needs captions that differ"


def test_samples_of_an_image_are_samples_of_that_image(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path],
) -> None:
    model, processor, directory = captioner
    stock = BlipForConditionalGeneration.from_pretrained(directory).eval()
    pixels = batch([1] * 3, 30)[0]["pixel_values"]
    decoding: dict[str, Any] = {"max_length": 9, "do_sample": True, "num_return_sequences": 4, "top_k": 0}
    captions = []
    for captions_of in (model, stock):
        torch.manual_seed(4)
        captions.append(generate_captions(captions_of, processor.tokenizer, pixels, **decoding))
    assert captions[0] == captions[1]
    assert len(captions[0]) == 12


def test_captions_come_without_the_prompt(captioner: tuple[BlipForCaptioning, BlipProcessor, Path]) -> None:
    model, processor, _ = captioner
    pixels = batch([1], 30)[0]["pixel_values"]
    prompted = generate_captions(model, processor.tokenizer, pixels, prompt="two small green ", **GREEDY)
    assert not prompted[0].startswith("two small green")


@pytest.mark.parametrize("counts", [True, False])
def test_beams_are_ordered_by_the_length_that_the_penalty_counts(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path], counts: bool
) -> None:
    """The score of a beam is the log-probability of its tokens over the length."""
    model, processor, _ = captioner
    model = copy.deepcopy(model)
    with torch.no_grad():  # so that captions end, after different lengths
        for weights in model.parameters():
            weights.mul_(3.0 if weights.ndim > 1 else 1.0)
        model.text_decoder.cls.predictions.bias[processor.tokenizer.sep_token_id] += 1.0
    pixels, prompt = batch([1] * 6, 30)[0]["pixel_values"], "two small green "
    embeds = model.vision_model(pixels).last_hidden_state
    decoding: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "max_length": 12, "early_stopping": "never"}
    decoding["length_penalty_counts_prompt"] = counts
    ids = generate_token_ids(model, processor.tokenizer, embeds, prompt, **decoding).unflatten(0, (6, 4))
    is_end = ids == processor.tokenizer.sep_token_id
    lengths = (is_end.cumsum(2) - is_end.long() == 0).sum(2)
    assert lengths.unique().numel() > 2, "the test needs captions of several lengths"
    sums = mean_log_probs(model, processor.tokenizer, embeds, prompt, ids) * lengths
    scores, others = (sums / (lengths + 3 * with_prompt) for with_prompt in (counts, not counts))
    assert (scores.diff(dim=1) < 1e-5).all()
    assert not (others.diff(dim=1) < 1e-5).all()


def test_a_counted_prompt_changes_nothing_but_the_length_penalty(
    captioner: tuple[BlipForCaptioning, BlipProcessor, Path],
) -> None:
    """Lengths of new tokens leave it out; the stock class takes it too; without a prompt there is nothing to count."""
    model, processor, directory = captioner
    stock = BlipForConditionalGeneration.from_pretrained(directory).eval()
    pixels = batch([1] * 6, 30)[0]["pixel_values"]

    def captions(model: Any = model, prompt: str = "two small green ", **keys: Any) -> list[str]:
        decoding = {"num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 2, "length_penalty": 0.0}
        return generate_captions(model, processor.tokenizer, pixels, prompt=prompt, **{**decoding, **keys})

    assert captions(length_penalty_counts_prompt=True) == captions()
    assert captions(length_penalty_counts_prompt=True, repetition_penalty=2.0) == captions(repetition_penalty=2.0)
    for count in (1, 3):
        keys: dict[str, Any] = {"length_penalty": 2.0, "length_penalty_counts_prompt": True}
        assert captions(stock, num_return_sequences=count, **keys) == captions(num_return_sequences=count, **keys)
    assert captions(prompt="", length_penalty_counts_prompt=True) == captions(prompt="")


def test_resized_position_embeddings_fit_the_new_pictures() -> None:
    torch.manual_seed(0)
    model, _ = build_tiny_captioner(WORDS)
    before = model.vision_model.embeddings.position_embedding.detach().clone()
    resize_position_embeddings(model, 144)
    after = model.vision_model.embeddings.position_embedding
    assert after.shape[1] == 3 * 3 + 1
    assert torch.equal(after[:, 0], before[:, 0])
    assert model.config.vision_config.image_size == 144
    assert model.vision_model(torch.zeros(1, 3, 144, 144)).last_hidden_state.shape[1] == 10
