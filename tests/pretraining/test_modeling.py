"""The three losses of pre-training, the weights that encoder and decoder share, and the stock models they become."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import save_captioner
from retrievers import TEXTS, PlainMomentum, draw_pairs, load_exactly, plain_step
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor
from web_data import save_filter

from blip_recipe.models.momentum import MomentumState
from blip_recipe.models.text import IGNORED
from blip_recipe.pretraining.modeling import BlipForPretraining
from blip_recipe.pretraining.tiny import build_tiny_pretrained

SMOOTHING = 0.1


def build_pretrained(seed: int = 0) -> tuple[BlipForPretraining, BlipProcessor]:
    torch.manual_seed(seed)
    model, processor = build_tiny_pretrained(TEXTS)
    return model.use_sdpa(), processor


def is_own(name: str) -> bool:
    """Whether a weight of a text model belongs to self-attention, which encoder and decoder do not share."""
    return ".attention." in name


def plain_token_loss(captioner: BlipForConditionalGeneration, pairs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Language modelling as the paper has it, text by text through the stock class: mean over all next tokens.

    With label smoothing, a share of the target is spread evenly over the vocabulary.
    """
    losses = []
    for pixels, ids, mask in zip(pairs["pixel_values"], pairs["input_ids"], pairs["attention_mask"], strict=True):
        tokens = ids[mask.bool()].clone()
        tokens[0] = captioner.config.text_config.bos_token_id
        embeds = captioner.vision_model(pixels[None]).last_hidden_state
        states = captioner.text_decoder.bert(tokens[None], encoder_hidden_states=embeds, is_decoder=True)
        scores = F.log_softmax(captioner.text_decoder.cls(states.last_hidden_state)[0], 1)
        for position, following in enumerate(tokens[1:]):
            uniform = scores[position].mean()
            losses.append(-((1 - SMOOTHING) * scores[position, following] + SMOOTHING * uniform))
    return torch.stack(losses).mean()


def test_the_three_losses_and_their_summed_gradients_equal_the_paper_written_plainly() -> None:
    model, processor = build_pretrained()
    state = MomentumState(model, queue_size=6, momentum=0.995, seed=3)
    matcher = copy.deepcopy(model.matcher())
    queues = (list(state.image_queue.flip(0)), list(state.text_queue.flip(0)), state.id_queue.flip(0).tolist())
    kept = PlainMomentum(copy.deepcopy(matcher), *queues)
    with torch.no_grad():
        model.temperature.fill_(0.2)
    for step, ids in enumerate(([0, 1, 2, 3], [3, 4, 5, 4], [6, 0, 4, 7])):
        matcher, captioner = copy.deepcopy(model.matcher()), copy.deepcopy(model.captioner())
        temperature = model.temperature.detach().clone().requires_grad_()
        pairs = draw_pairs(processor, ids, seed=step)
        inputs = {name: values for name, values in pairs.items() if name != "ids"}
        state.update(model)
        momentum = state.encode(**pairs)
        candidates, uniform = state.candidates(momentum), state.uniform(len(ids))
        labels = pairs["input_ids"].masked_fill(pairs["attention_mask"] == 0, IGNORED)
        alpha = 0.4 * step / 2
        output: Any = model(
            **inputs,
            labels=labels,
            label_smoothing=SMOOTHING,
            momentum=momentum,
            candidates=candidates,
            alpha=alpha,
            uniform=uniform,
        )
        tokens = (labels[:, 1:] != IGNORED).sum()
        losses = output.contrastive_losses.mean(), output.matching_losses.mean(), output.token_losses.sum() / tokens
        expected = (
            *plain_step(matcher, kept, pairs, temperature, alpha, uniform, model.enc_token_id),
            plain_token_loss(captioner, pairs),
        )
        assert torch.allclose(torch.stack(losses), torch.stack(expected), atol=1e-5)
        torch.stack(losses).sum().backward()
        torch.stack(expected).sum().backward()
        assert model.temperature.grad is not None
        assert torch.allclose(model.temperature.grad, temperature.grad, atol=1e-5)  # type: ignore[arg-type]
        compare_and_descend(model, matcher, captioner)


def compare_and_descend(
    model: BlipForPretraining, matcher: BlipForImageTextRetrieval, captioner: BlipForConditionalGeneration
) -> None:
    """The gradient of a shared weight is the sum of the gradients of the two models that have their own copies."""
    of_matcher, of_captioner = dict(matcher.named_parameters()), dict(captioner.named_parameters())
    for name, weights in model.named_parameters():
        in_matcher = name if is_own(name) else name.replace("text_decoder.bert.", "text_encoder.")
        copies = (of_captioner.get(name), of_matcher.get(in_matcher))
        gradients = [each.grad for each in copies if each is not None and each.grad is not None]
        if gradients and weights.grad is not None:
            assert torch.allclose(weights.grad, torch.stack(gradients).sum(0), atol=1e-5), name
        if weights.grad is not None:
            weights.data -= 0.01 * weights.grad
            weights.grad = None


def test_encoder_and_decoder_share_all_but_self_attention_also_after_saving(tmp_path: Path) -> None:
    model, _ = build_pretrained()
    model.save_pretrained(tmp_path)
    for each in (model, BlipForPretraining.from_pretrained(tmp_path)):
        decoder = dict(each.text_decoder.bert.named_parameters())
        encoder = dict(each.text_encoder.named_parameters())
        assert encoder.keys() == decoder.keys()
        assert {name for name in encoder if encoder[name] is not decoder[name]} == set(filter(is_own, encoder))
        assert any(map(is_own, encoder))
        assert each.text_decoder.get_output_embeddings().weight is each.text_encoder.embeddings.word_embeddings.weight


def test_what_is_saved_are_stock_models_and_is_loaded_as_it_was(tmp_path: Path) -> None:
    model, processor = build_pretrained()
    with torch.no_grad():
        model.temperature.fill_(0.0333)
        for weights in model.parameters():
            weights.add_(0.01 * torch.randn_like(weights) * (weights.ndim > 1))
    model.eval().save_pretrained(tmp_path)
    captioner = load_exactly(BlipForConditionalGeneration, tmp_path).eval()
    matcher = load_exactly(BlipForImageTextRetrieval, tmp_path / "matcher").eval()
    for stock, folder in ((captioner, tmp_path), (matcher, tmp_path / "matcher")):
        assert load_file(folder / "model.safetensors").keys() <= stock.state_dict().keys()
        assert stock.config.architectures == [type(stock).__name__]
    again = BlipForPretraining.from_pretrained(tmp_path).use_sdpa().eval()
    assert again.temperature.item() == pytest.approx(0.0333)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "temperature")
    pairs = draw_pairs(processor, [0, 1, 2])
    pixels, ids, mask = pairs["pixel_values"], pairs["input_ids"], pairs["attention_mask"]
    with torch.no_grad():
        embeds = again.encode_images(pixels)
        ours = again.image_features(embeds) @ again.text_features(ids, mask).T
        assert torch.allclose(ours, matcher(ids, pixels, use_itm_head=False, attention_mask=mask).itm_score, atol=1e-5)
        enc = ids.index_fill(1, torch.tensor([0]), again.enc_token_id)
        logits = matcher(enc, pixels, attention_mask=mask).itm_score
        assert torch.allclose(again.match_logits(embeds, ids, mask), logits, atol=1e-5)
        dec = ids.index_fill(1, torch.tensor([0]), again.config.text_config.bos_token_id)
        expected = captioner(pixel_values=pixels, input_ids=dec, attention_mask=mask).logits
        found = again(pixel_values=pixels, input_ids=dec, attention_mask=mask).logits
        assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-4)


def test_it_starts_from_a_captioner_or_a_matcher(tmp_path: Path) -> None:
    captioner = save_captioner(tmp_path / "captioner")
    matcher = save_filter(tmp_path / "matcher")
    for folder, prefix in ((captioner, "text_decoder.bert."), (matcher, "text_encoder.")):
        given = load_file(folder / "model.safetensors")
        model = BlipForPretraining.from_pretrained(folder)
        state = model.state_dict()
        assert all(torch.equal(state[name], values) for name, values in given.items())
        for name in (name for name in given if name.startswith(prefix)):
            for other in ("text_decoder.bert.", "text_encoder."):
                assert torch.equal(state[name.replace(prefix, other)], given[name])
        stock: Any = BlipForConditionalGeneration if folder == captioner else BlipForImageTextRetrieval
        shared = BlipForPretraining.from_stock(stock.from_pretrained(folder))
        assert shared.state_dict().keys() == state.keys()
        model.save_pretrained(tmp_path / "saved" / folder.name)
        load_exactly(BlipForConditionalGeneration, tmp_path / "saved" / folder.name)
