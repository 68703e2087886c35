"""The largest step on image-text pairs, to estimate its memory."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from blip_recipe.models.contrastive import Features
from blip_recipe.models.momentum import ENCODERS
from blip_recipe.training.memory import empty_pixels, sum_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from blip_recipe.models.image_text import ImageTextModel
    from blip_recipe.training.memory import Step
    from blip_recipe.training.training_arguments import MomentumTrainingArguments

SAMPLE = 1000
"""Number of images whose captions are tokenised."""

FLOAT_BYTES, ID_BYTES = 4, 8
"""Bytes of a number in the queue, and of an image's id."""


def pair_step(
    args: MomentumTrainingArguments, rows: Any, tokenizer: PreTrainedTokenizerBase, *, predicts_tokens: bool = False
) -> Step:
    """The step of a batch of pairs with the longest captions of the first `SAMPLE` images.

    Args:
        args: The training arguments.
        rows: Rows with `captions`.
        tokenizer: The model's tokenizer.
        predicts_tokens: Whether the model also predicts the tokens of the captions.
    """
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
        losses = outputs.contrastive_losses + outputs.matching_losses.mean(1)
        if not predicts_tokens:
            return losses
        # Without labels: the number of predicted tokens is unknown in a trace.
        token_losses = F.cross_entropy(outputs.logits.float().transpose(1, 2), ids, reduction="none")
        return losses + token_losses.sum(1)

    return step


def momentum_bytes(model: ImageTextModel, queue_size: int) -> int:
    """The bytes of `MomentumState`: copies of the trained weights of the encoders, and the queue."""
    weights = chain.from_iterable(getattr(model, name).parameters() for name in ENCODERS)
    a_pair = 2 * FLOAT_BYTES * model.config.image_text_hidden_size + ID_BYTES
    return sum_bytes(weight for weight in weights if weight.requires_grad) + queue_size * a_pair


def _features(pairs: int, width: int, device: torch.device) -> Features:
    values = torch.zeros(pairs, width, device=device)
    return Features(values, values, torch.arange(pairs, device=device))
