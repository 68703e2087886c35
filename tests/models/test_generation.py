"""Images whose texts are finished leave the batch of a generation, and all texts stay the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from captioners import CAPTIONS
from peft import LoraConfig, get_peft_model
from transformers import BlipForConditionalGeneration, LogitsProcessor, LogitsProcessorList

from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.sampling import seeded_sampling
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.models.captioner import generate_token_ids

LENGTHS = [9, 4, 7, 4, 12]
LONGEST = 12
"""Tokens with the start token."""


class EndAt(LogitsProcessor):
    """End the texts of each image at a length of its own."""

    def __init__(self, lengths: list[int], end_token_id: int) -> None:
        self.lengths, self.end_token_id = torch.tensor(lengths), end_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        lengths = self.lengths.repeat_interleave(len(input_ids) // len(self.lengths))
        only_end = torch.full_like(scores, -torch.inf)
        only_end[:, self.end_token_id] = 0.0
        not_end = scores.clone()
        not_end[:, self.end_token_id] = -torch.inf
        return torch.where((input_ids.shape[1] + 1 >= lengths)[:, None], only_end, not_end)


def build(seed: int = 0) -> tuple[BlipForCaptioning, BlipForConditionalGeneration, torch.Tensor]:
    """A captioner of ours, the same of the stock class, and pictures."""
    torch.manual_seed(seed)
    ours = build_tiny_captioner(CAPTIONS)[0].eval()
    with torch.no_grad():
        for weights in ours.parameters():
            weights.mul_(10.0 if weights.ndim > 1 else 1.0)  # the texts of the pictures differ
    stock = BlipForConditionalGeneration(ours.config).eval()
    stock.load_state_dict(ours.state_dict())
    return ours.use_sdpa(), stock, torch.randn(len(LENGTHS), 3, 96, 96)


def generate(model: Any, pixels: torch.Tensor, lengths: list[int] = LENGTHS, **decoding: Any) -> Any:
    torch.manual_seed(1)
    ends = LogitsProcessorList([EndAt(lengths, model.config.text_config.sep_token_id)])
    return model.generate(
        pixel_values=pixels, max_length=LONGEST, logits_processor=ends, **{"do_sample": False} | decoding
    )


def count_texts(model: Any) -> list[int]:
    """The list that gets the number of texts of each step of the decoder."""
    counts: list[int] = []
    model.text_decoder.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return counts


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(
    "decoding",
    [
        {"num_beams": 1},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": -1.0},
        {"num_beams": 2, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"num_beams": 1, "do_sample": True, "num_return_sequences": 3, "top_k": 0},
        {"num_beams": 3, "do_sample": True},
        {"num_beams": 3, "min_length": 4},
    ],
)
def test_finished_images_leave_and_all_texts_stay(decoding: dict[str, Any], adapted: bool) -> None:
    ours, stock, pixels = build()
    counts = count_texts(ours)
    model: Any = ours
    if adapted:  # it needs keys and values of the images
        model = get_peft_model(ours, LoraConfig(target_modules=["key", "value"])).eval()
    written = generate(model, pixels, **decoding)
    each = max(decoding["num_beams"], decoding.get("num_return_sequences", 1) if decoding["num_beams"] == 1 else 1)
    # Two images end at 4 tokens, one at 7, one at 9, and one at 12; the step that would compute token 5 has three. The
    # texts of an image have the same first token.
    assert counts == [5, *(each * images for images in (5, 5, 3, 3, 3, 2, 2, 1, 1, 1))]
    assert torch.equal(written, generate(stock, pixels, **decoding))
    assert len({tuple(text) for text in written.tolist()}) > len(LENGTHS) // 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beams_end_where_transformers_ends_them(seed: int, early_stopping: bool | str) -> None:
    """Texts end by their own end token, so that a finished image may have beams that still run."""
    ours, stock, _ = build(seed)
    end = ours.config.text_config.sep_token_id
    for model in (ours, stock):
        model.text_decoder.cls.predictions.bias.data[end] += 4.0
    pixels = torch.randn(16, 3, 96, 96)
    counts = count_texts(ours)
    decoding: dict[str, Any] = {"num_beams": 3, "max_length": 24, "do_sample": False, "early_stopping": early_stopping}
    written = ours.generate(pixel_values=pixels, **decoding)
    assert torch.equal(written, stock.generate(pixel_values=pixels, **decoding))
    assert counts[:2] == [16, 48]
    assert counts[-1] < 48


@pytest.mark.parametrize(
    "decoding",
    [
        {"num_beams": 3},
        {"num_beams": 3, "length_penalty_counts_prompt": True, "length_penalty": 2.0},
        {"num_beams": 1, "repetition_penalty": 1.5},
        {"num_beams": 1, "do_sample": True, "num_return_sequences": 2, "seed": 3},
    ],
)
def test_prompts_and_seeds_give_the_texts_of_the_stock_class(decoding: dict[str, Any]) -> None:
    ours, stock, pixels = build()
    processor = build_tiny_captioner(CAPTIONS)[1]
    written = []
    for model in (ours, stock):
        arguments = {"max_length": 16, "do_sample": False} | decoding
        if "seed" in arguments:
            arguments = seeded_sampling(pixels, arguments.pop("seed"), arguments)
        written.append(generate_token_ids(model, processor.tokenizer, pixels, "a red square ", **arguments))
    assert torch.equal(*written)


def test_arguments_that_need_another_loop_have_it() -> None:
    ours, stock, pixels = build()
    tokenizer = build_tiny_captioner(CAPTIONS)[1].tokenizer
    word = tokenizer.convert_ids_to_tokens(generate(ours, pixels)[0].tolist())[3].removeprefix("##")
    stopped, expected = (generate(model, pixels, stop_strings=[word], tokenizer=tokenizer) for model in (ours, stock))
    assert torch.equal(stopped, expected)
    assert not torch.equal(stopped, generate(ours, pixels)[:, : stopped.shape[1]])
    with pytest.raises(Exception, match="group-beam-search"):
        generate(ours, pixels, num_beams=4, num_beam_groups=2, diversity_penalty=1.0)


def test_a_model_generates_in_several_threads_at_once() -> None:
    ours, _, pixels = build()
    batches = [(LENGTHS[turn:] + LENGTHS[:turn], 1 + turn % 3) for turn in range(12)]

    def texts(batch: tuple[list[int], int]) -> torch.Tensor:
        lengths, beams = batch
        return generate(ours, pixels, lengths, num_beams=beams)

    expected = [texts(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, text in zip(pool.map(texts, batches), expected, strict=True):
            assert torch.equal(found, text)


def test_scores_of_all_texts_are_given_where_they_are_asked_for() -> None:
    ours, stock, pixels = build()
    found, expected = (
        generate(model, pixels, return_dict_in_generate=True, output_scores=True) for model in (ours, stock)
    )
    assert torch.equal(found.sequences, expected.sequences)
    for one, two in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
