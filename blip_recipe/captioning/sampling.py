"""Sample captions with random numbers that depend only on the picture and a seed.

So the captions of a picture do not depend on the batch, the process or the order of pictures, and a resumed run gives
the same captions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from blip_recipe.runtime.scores import picture_uniforms

DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""The sampling of transformers."""


class NucleusSampler(LogitsProcessor):
    """Sample each row's next token from its nucleus (arXiv 1904.09751) with given random numbers.

    Args:
        uniforms: Random numbers `(rows, steps)` in [0, 1).
        top_k: Use only this many most probable tokens; 0 for all.
        top_p: Use the smallest set of most probable tokens with at least this total probability.
        temperature: Divisor of the logits: below 1, probable tokens become more probable.
    """

    def __init__(self, uniforms: np.ndarray, *, top_k: int, top_p: float, temperature: float = 1.0) -> None:
        self.uniforms = torch.from_numpy(uniforms).double()
        self.top_k, self.top_p, self.temperature = top_k, top_p, temperature
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Set `scores` `(rows, vocabulary)` to minus infinity, except for the sampled token of each row."""
        vocabulary = scores.shape[1]
        logits, tokens = scores.float().topk(min(self.top_k or vocabulary, vocabulary))
        # Use double precision on the CPU, because sums on a GPU are not deterministic.
        probabilities = (logits.cpu().double() / self.temperature).softmax(1)
        before = probabilities.cumsum(1) - probabilities
        nucleus = probabilities.masked_fill(before >= self.top_p, 0)
        sums = nucleus.cumsum(1)
        place = (sums <= self.uniforms[:, self.step, None] * sums[:, -1:]).sum(1, keepdim=True)
        self.step += 1
        chosen = tokens.gather(1, place.clamp(max=tokens.shape[1] - 1).to(tokens.device))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)  # type: ignore[return-value]

    def generate_kwargs(self) -> dict[str, Any]:
        """Arguments of `generate` for sampling with this sampler alone. It leaves one token to sample from."""
        return {
            "do_sample": True,
            "top_k": 0,
            "top_p": 1.0,
            "temperature": 1.0,
            "num_beams": 1,
            "logits_processor": LogitsProcessorList([self]),
        }


def seeded_sampling(pixel_values: torch.Tensor, seed: int, decoding: dict[str, Any]) -> dict[str, Any]:
    """Replace the sampling of `decoding` by one whose random numbers depend on the seed and each picture's pixels.

    Args:
        pixel_values: `(images, 3, height, width)`.
        seed: The seed.
        decoding: Arguments of `generate` with `do_sample`.

    Raises:
        ValueError: `decoding` does not sample, or uses beams.
    """
    if not decoding.get("do_sample") or decoding.get("num_beams", 1) > 1:
        raise ValueError("`seed` is given, but nothing is sampled: expected do_sample=True, without beams.")
    count = decoding.get("num_return_sequences") or 1
    steps = decoding.get("max_new_tokens") or decoding["max_length"]
    sampling = {name: decoding.get(name, usual) for name, usual in DEFAULTS.items()}
    contents = [pixels.float().cpu().numpy().tobytes() for pixels in pixel_values]
    uniforms = np.concatenate([picture_uniforms(content, seed, count, steps) for content in contents])
    sampler = NucleusSampler(uniforms, **sampling).generate_kwargs()
    sampler["logits_processor"][:0] = decoding.get("logits_processor") or []
    return decoding | sampler
