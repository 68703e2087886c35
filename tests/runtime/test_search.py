"""The runner's token ids are those of transformers, for every decoding of the recipes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captioners import save_captioner
from exports import run_in_torch

from blip_recipe.captioning.modeling import mean_log_probs
from blip_recipe.captioning.sampling import seeded_sampling
from blip_recipe.exporting.kinds import Source
from blip_recipe.models.captioner import generate_token_ids
from blip_recipe.models.decoding import decoding_arguments
from blip_recipe.runtime.captioner import ExportedCaptioner
from blip_recipe.runtime.settings import Search

DECODINGS: list[tuple[str, dict[str, Any]]] = [
    ("", {"num_beams": 1}),
    ("a picture of ", {"num_beams": 1, "max_length": 30, "min_length": 1}),
    ("", {"num_beams": 3}),
    ("a picture of ", {"num_beams": 3}),
    ("", {"num_beams": 5, "num_return_sequences": 5}),
    ("a ", {"num_beams": 3, "early_stopping": True, "min_length": 1}),
    ("", {"num_beams": 3, "early_stopping": "never", "max_length": 30, "min_length": 1}),
    ("", {"num_beams": 3, "length_penalty": 3.0, "min_length": 1}),
    ("", {"num_beams": 3, "length_penalty": -2.0, "min_length": 1}),
    ("a picture of ", {"num_beams": 4, "length_penalty": 2.0, "length_penalty_counts_prompt": True, "min_length": 1}),
    ("", {"num_beams": 3, "repetition_penalty": 1.7}),
    ("two ", {"num_beams": 1, "repetition_penalty": 0.8, "no_repeat_ngram_size": 2}),
    ("", {"num_beams": 2, "no_repeat_ngram_size": 1}),
    ("a picture of ", {"num_beams": 2, "max_new_tokens": 6, "min_new_tokens": 4}),
    ("", {"num_beams": 3, "max_length": 4, "min_length": 4}),
]


@pytest.fixture(scope="module", params=["untrained", "parity"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "parity":
        return run_in_torch(request.getfixturevalue("shared") / "data" / "parity" / "model", folder)
    return run_in_torch(save_captioner(folder / "model"), folder)


def draw_pixels(source: Source, count: int) -> torch.Tensor:
    size = source.processor.image_processor.size["height"]
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("number", range(len(DECODINGS)))
def test_token_ids_are_those_of_transformers(models: tuple[Source, ExportedCaptioner], number: int) -> None:
    source, exported = models
    prompt, decoding = DECODINGS[number]
    pixels = draw_pixels(source, 1 + number % 6)
    expected = generate_token_ids(
        source.model, source.processor.tokenizer, pixels, prompt, **decoding_arguments(source.settings, decoding)
    )
    found, _ = exported.generate(pixels.numpy(), prompt=prompt, **decoding)
    assert found.reshape(expected.shape[0], -1).tolist() == expected.tolist()


def test_sixteen_pictures_at_once(models: tuple[Source, ExportedCaptioner]) -> None:
    source, exported = models
    pixels = draw_pixels(source, 16)
    expected = generate_token_ids(
        source.model, source.processor.tokenizer, pixels, "", **source.settings.generate_kwargs()
    )
    assert exported.generate(pixels.numpy(), prompt="")[0][:, 0].tolist() == expected.tolist()
    assert len({tuple(ids) for ids in expected.tolist()}) > 3  # the captions differ


@pytest.mark.parametrize("sampling", [{}, {"top_k": 5, "temperature": 0.5}, {"top_p": 0.7}])
def test_samples_are_those_of_torch(models: tuple[Source, ExportedCaptioner], sampling: dict[str, Any]) -> None:
    """The random numbers depend on seed and pixels, so equal pixels give equal samples, if `top_k` is not 0."""
    source, exported = models
    pixels = draw_pixels(source, 3)
    decoding = {"do_sample": True, "num_return_sequences": 2, **sampling}
    arguments = seeded_sampling(pixels, 7, decoding_arguments(source.settings, decoding))
    expected = generate_token_ids(source.model, source.processor.tokenizer, pixels, "", **arguments)
    found, _ = exported.generate(pixels.numpy(), prompt="", seed=7, **decoding)
    assert found.reshape(6, -1).tolist() == expected.tolist()
    other, _ = exported.generate(pixels.numpy(), prompt="", seed=8, **decoding)
    assert other.tolist() != found.tolist()


def test_scores_are_mean_log_probabilities(models: tuple[Source, ExportedCaptioner]) -> None:
    source, exported = models
    pixels = draw_pixels(source, 2)
    token_ids, _ = exported.generate(pixels.numpy(), num_beams=3, num_return_sequences=3)
    with torch.no_grad():
        embeds = source.model.vision_model(pixels).last_hidden_state
        expected = mean_log_probs(
            source.model, source.processor.tokenizer, embeds, source.settings.prompt, torch.from_numpy(token_ids)
        )
    found = exported.mean_log_probs(exported.encode(pixels.numpy()), token_ids)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_unknown_argument_is_an_error() -> None:
    with pytest.raises(ValueError, match="penalty_alpha"):
        Search.from_arguments({"penalty_alpha": 0.6}, 1, end=1, padding=0)
