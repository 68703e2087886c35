"""Nucleus sampling of captions (arXiv 1904.09751) with random numbers that depend only on the picture and the seed.

So the captions of a picture do not depend on the batch, the process or the order of shards, and a resumed run gives the
same captions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from blip_recipe.captioning.modeling import generate_captions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from blip_recipe.capfilt.arguments import CapFiltArguments


class NucleusSampler(LogitsProcessor):
    """Sample each row's next token from its nucleus with given random numbers.

    Args:
        uniforms: Random numbers `(rows, steps)` in [0, 1).
        top_k: Use only this many most probable tokens; 0 for all.
        top_p: Use the smallest set of most probable tokens with at least this total probability.
    """

    def __init__(self, uniforms: np.ndarray, *, top_k: int, top_p: float) -> None:
        self.uniforms = torch.from_numpy(uniforms).double()
        self.top_k, self.top_p = top_k, top_p
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Set `scores` `(rows, vocabulary)` to minus infinity, except for the sampled token of each row."""
        vocabulary = scores.shape[1]
        logits, tokens = scores.float().topk(min(self.top_k or vocabulary, vocabulary))
        # Use double precision on the CPU, because sums on a GPU are not deterministic.
        probabilities = logits.cpu().double().softmax(1)
        before = probabilities.cumsum(1) - probabilities
        nucleus = probabilities.masked_fill(before >= self.top_p, 0)
        sums = nucleus.cumsum(1)
        place = (sums <= self.uniforms[:, self.step, None] * sums[:, -1:]).sum(1, keepdim=True)
        self.step += 1
        chosen = tokens.gather(1, place.clamp(max=tokens.shape[1] - 1).to(tokens.device))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)  # type: ignore[return-value]


def picture_uniforms(content: bytes, seed: int, count: int, steps: int) -> np.ndarray:
    """Draw random numbers `(count, steps)` in [0, 1), seeded with the seed and the file of a picture.

    The first rows do not depend on `count`.
    """
    picture = np.frombuffer(hashlib.sha256(content).digest(), dtype="<u4").tolist()
    drawn = [np.random.default_rng([seed, number, *picture]).random(steps, dtype=np.float32) for number in range(count)]
    return np.stack(drawn)


def sample_captions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pixel_values: torch.Tensor,
    contents: Sequence[bytes],
    prompt: str,
    arguments: CapFiltArguments,
) -> list[list[str]]:
    """Sample `num_generations` captions of each picture, without the prompt.

    Args:
        model: A captioner in evaluation mode.
        tokenizer: Its tokenizer.
        pixel_values: `(images, 3, height, width)`, normalised.
        contents: The encoded files of the pictures.
        prompt: The prompt of all captions.
        arguments: The settings of sampling. The defaults of penalty, top-k and lengths are those of the original
            repository (`models/blip.py`, `generate` with `sample`; `top_k` was the default of its transformers).
    """
    count = arguments.num_generations
    uniforms = [picture_uniforms(content, arguments.seed, count, arguments.max_length) for content in contents]
    sampler = NucleusSampler(np.concatenate(uniforms), top_k=arguments.top_k, top_p=arguments.top_p)
    captions = generate_captions(
        model,
        tokenizer,
        pixel_values,
        prompt=prompt,
        # The sampler leaves one token, so sampling always takes it.
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        num_beams=1,
        num_return_sequences=count,
        repetition_penalty=arguments.repetition_penalty,
        min_length=arguments.min_length,
        max_length=arguments.max_length,
        logits_processor=LogitsProcessorList([sampler]),
    )
    return [captions[first : first + count] for first in range(0, len(captions), count)]
