"""A model of base size with random weights: the exported graphs give the token ids of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioners import CAPTIONS
from transformers import BlipConfig

from blip_recipe.captioning.modeling import BlipForCaptioning, mean_log_probs
from blip_recipe.exporting.folder import MAX_DIFFERENCE, write_graphs
from blip_recipe.exporting.kinds import Source, load_source
from blip_recipe.models.captioner import generate_token_ids
from blip_recipe.models.decoding import decoding_arguments
from blip_recipe.models.processors import save_processor
from blip_recipe.models.tiny import build_tokenizer, tiny_processor
from blip_recipe.runtime.captioner import ExportedCaptioner

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LENGTH = 9
"""Tokens of each caption, so that none is short and easy."""

CASES = [(16, 1, ""), (5, 3, ""), (3, 5, ""), (1, 5, "a picture of "), (2, 3, "two "), (4, 1, "a picture of ")]
"""Number of pictures, of beams, and the prompt."""

TIE = 1e-5
"""Two captions whose mean log-probabilities differ by less are a tie."""


def save_base(directory: Path) -> Path:
    """BLIP's base size. Larger weights of the decoder than fresh ones make captions differ."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a picture of ", *CAPTIONS])
    text = {"vocab_size": 30524, "bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id}
    text |= {"num_attention_heads": 12, "encoder_hidden_size": 768, "pad_token_id": tokenizer.pad_token_id}
    vision = {"image_size": 384, "layer_norm_eps": 1e-6, "initializer_range": 0.02}
    model = BlipForCaptioning(BlipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for weights in model.text_decoder.parameters():
            weights.mul_(1.5 if weights.ndim > 1 else 1.0)
    model.save_pretrained(directory)
    save_processor(tiny_processor(tokenizer, 384), directory)
    return directory


@pytest.mark.long
@pytest.mark.timeout(3600)
@torch.no_grad()
def test_token_ids_are_those_of_torch_where_captions_do_not_tie(tmp_path: Path) -> None:
    source = load_source(str(save_base(tmp_path / "base")))
    (tmp_path / "exported").mkdir()
    write_graphs(source, tmp_path / "exported")
    exported = ExportedCaptioner.load(tmp_path / "exported", threads=torch.get_num_threads())
    assert exported.folder.record["opset"] == 23
    pixels = torch.randn(16, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    start = torch.full((2, 1), exported.folder.record["tokens"]["start"])
    first = source.model(pixel_values=pixels[:2], input_ids=start).logits[:, -1].softmax(-1)
    logits = exported.decoder_for(exported.encode(pixels[:2].numpy())).read(start.numpy()[:, None])[:, 0]
    assert (first - torch.from_numpy(logits).softmax(-1)).abs().max() < MAX_DIFFERENCE
    equal, ties, captions = 0, 0, set()
    for images, beams, prompt in CASES:
        expected, found = (caption(source, exported, pixels[:images], beams, prompt) for caption in (torch_ids, ids))
        captions |= {tuple(each) for each in expected.tolist()}
        for row, (own, other) in enumerate(zip(expected, found, strict=True)):
            if own.tolist() == other.tolist():
                equal += 1
                continue
            scores = scores_of(source, pixels[row : row + 1], prompt, torch.stack([own, other]))
            assert abs(scores[0] - scores[1]) < TIE, (images, beams, prompt, row, scores)
            ties += 1
    print(f"{equal} of {equal + ties} captions have equal token ids; {ties} differ where two captions tie")
    assert equal >= 0.9 * (equal + ties)
    assert len(captions) > 3


def torch_ids(source: Source, _: Any, pixels: torch.Tensor, beams: int, prompt: str) -> torch.Tensor:
    """The token ids of torch after the prompt."""
    arguments = decoding_arguments(source.settings, {"num_beams": beams, "max_length": LENGTH, "min_length": LENGTH})
    return generate_token_ids(source.model, source.processor.tokenizer, pixels, prompt, **arguments)


def ids(_: Any, exported: ExportedCaptioner, pixels: torch.Tensor, beams: int, prompt: str) -> torch.Tensor:
    """The token ids of the runner after the prompt."""
    decoding: dict[str, Any] = {"num_beams": beams, "max_length": LENGTH, "min_length": LENGTH}
    return torch.from_numpy(np.ascontiguousarray(exported.generate(pixels.numpy(), prompt=prompt, **decoding)[0][:, 0]))


def scores_of(source: Source, pixels: torch.Tensor, prompt: str, token_ids: torch.Tensor) -> list[float]:
    """The mean log-probabilities of captions of one picture in torch."""
    embeds = source.model.vision_model(pixels).last_hidden_state
    found = mean_log_probs(source.model, source.processor.tokenizer, embeds, prompt, token_ids[None])
    return found[0].tolist()
