"""Nucleus sampling of captions (arXiv 1904.09751) with random numbers that depend only on the picture and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blip_recipe.captioning.sampling import NucleusSampler
from blip_recipe.models.captioner import generate_captions
from blip_recipe.runtime.scores import picture_uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from blip_recipe.capfilt.arguments import CapFiltArguments


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
    sampler = NucleusSampler(
        np.concatenate(uniforms), top_k=arguments.top_k, top_p=arguments.top_p, temperature=arguments.temperature
    )
    captions = generate_captions(
        model,
        tokenizer,
        pixel_values,
        prompt=prompt,
        num_return_sequences=count,
        repetition_penalty=arguments.repetition_penalty,
        no_repeat_ngram_size=arguments.no_repeat_ngram_size,
        min_length=arguments.min_length,
        max_length=arguments.max_length,
        **sampler.generate_kwargs(),
    )
    return [captions[first : first + count] for first in range(0, len(captions), count)]
