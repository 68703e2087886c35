"""The largest step of retrieval, to estimate its memory."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.models.contrastive import Features
from blip_recipe.models.momentum import ENCODERS
from blip_recipe.training.memory import empty_pixels, sum_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from blip_recipe.retrieval.modeling import BlipForRetrieval
    from blip_recipe.retrieval.training_arguments import RetrievalTrainingArguments
    from blip_recipe.training.memory import Step

SAMPLE = 1000
"""Number of images whose captions are tokenised."""

FLOAT_BYTES, ID_BYTES = 4, 8
"""Bytes of a number in the queue, and of an image's id."""


def pair_step(args: RetrievalTrainingArguments, rows: Any, tokenizer: PreTrainedTokenizerBase) -> Step:
    """The step of a batch of pairs with the longest captions of the first `SAMPLE` images."""
    captions = rows.select_columns(["captions"])[range(min(SAMPLE, len(rows)))]["captions"]
    texts = list(chain.from_iterable(captions))
    tokens = max(map(len, tokenizer(texts, truncation=True, max_length=args.max_caption_length).input_ids))
    pairs, candidates = args.train_batch_size, args.train_batch_size * args.world_size + args.queue_size

    def step(model: Any, device: torch.device) -> torch.Tensor:
        width = model.config.image_text_hidden_size
        ids = torch.ones(pairs, tokens, dtype=torch.int64, device=device)
        outputs = model(
            pixel_values=empty_pixels(model, pairs, device),
            input_ids=ids,
            attention_mask=ids,
            momentum=_features(pairs, width, device),
            candidates=_features(candidates, width, device),
            alpha=args.alpha,
            uniform=torch.zeros(pairs, 2, device=device),
            negatives_from_all=False,  # a trace asks no other process
        )
        return outputs.contrastive_losses + outputs.matching_losses.mean(1)

    return step


def momentum_bytes(model: BlipForRetrieval, queue_size: int) -> int:
    """The bytes of `MomentumState`: copies of the trained weights of the encoders, and the queue."""
    weights = chain.from_iterable(getattr(model, name).parameters() for name in ENCODERS)
    a_pair = 2 * FLOAT_BYTES * model.config.image_text_hidden_size + ID_BYTES
    return sum_bytes(weight for weight in weights if weight.requires_grad) + queue_size * a_pair


def _features(pairs: int, width: int, device: torch.device) -> Features:
    values = torch.zeros(pairs, width, device=device)
    return Features(values, values, torch.arange(pairs, device=device))
