"""The losses of image-text contrastive learning (ITC) and image-text matching (ITM).

ITC has soft targets, and ITM hard negatives.

Both follow the original repository (`models/blip_retrieval.py`), which uses the formulas of ALBEF (Li et al., 2021,
https://arxiv.org/abs/2107.07651, equations 1 to 4 and 6).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

DIFFERENT, MATCHING = 0, 1
"""The classes of the ITM head."""

BLOCK = 1024
"""Number of queries whose similarities to a whole split are computed at a time."""


class Features(NamedTuple):
    """Unit-length features of image-text pairs.

    Attributes:
        image: `(pairs, width)`.
        text: `(pairs, width)`.
        ids: `(pairs,)`, the id of each pair's image.
    """

    image: torch.Tensor
    text: torch.Tensor
    ids: torch.Tensor


def contrastive_losses(
    own: Features, momentum: Features, candidates: Features, temperature: torch.Tensor, alpha: float
) -> torch.Tensor:
    """The ITC loss of each pair, averaged over both directions, `(pairs,)` in float32.

    Args:
        own: Features from the model in training.
        momentum: Features of the same pairs from the momentum encoders.
        candidates: Momentum features to compare with, including those of the same pairs.
        temperature: Divisor of the similarities.
        alpha: Weight of the soft targets from the momentum encoders. The remaining weight is shared equally by all
            candidates with the id of the pair.
    """
    same = (own.ids[:, None] == candidates.ids).float()
    hard = same / same.sum(1, keepdim=True)
    to_texts = _soft_cross_entropy(own.image, momentum.image, candidates.text, hard, temperature, alpha)
    to_images = _soft_cross_entropy(own.text, momentum.text, candidates.image, hard, temperature, alpha)
    return (to_texts + to_images) / 2


def _soft_cross_entropy(
    queries: torch.Tensor,
    momentum_queries: torch.Tensor,
    candidates: torch.Tensor,
    hard: torch.Tensor,
    temperature: torch.Tensor,
    alpha: float,
) -> torch.Tensor:
    with torch.no_grad():
        found = _similarities(momentum_queries, candidates, temperature).softmax(1)
        targets = alpha * found + (1 - alpha) * hard
    return -(_similarities(queries, candidates, temperature).log_softmax(1) * targets).sum(1)


def _similarities(queries: torch.Tensor, candidates: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    # With temperatures down to 0.001, bfloat16 is too coarse to separate candidates.
    with torch.autocast(queries.device.type, enabled=False):
        return queries.float() @ candidates.float().T / temperature


@torch.no_grad()
def sample_negatives(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    same: torch.Tensor,
    temperature: torch.Tensor,
    uniform: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample a hard negative for each query, with the softmax of similarities as probabilities.

    Args:
        queries: Features `(queries, width)`.
        candidates: Features of the other modality `(candidates, width)`.
        same: `(queries, candidates)`, whether both have the same image.
        temperature: Divisor of the similarities.
        uniform: `(queries,)`, random numbers in [0, 1) for sampling.

    Returns:
        Row numbers of the sampled candidates `(queries,)`, and whether a candidate of another image exists
        `(queries,)`.
    """
    # Mask true pairs before the softmax, so that their probability does not take that of the negatives.
    similarities = _similarities(queries, candidates, temperature).double().masked_fill(same, -torch.inf)
    exists = ~same.all(1)
    shares = similarities.masked_fill(~exists[:, None], 0.0).softmax(1)
    sums = shares.cumsum(1)
    drawn = torch.searchsorted(sums, uniform.double()[:, None] * sums[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=len(candidates) - 1), exists


def matching_losses(
    true_pairs: torch.Tensor, with_other_text: torch.Tensor, with_other_image: torch.Tensor, exists: torch.Tensor
) -> torch.Tensor:
    """The ITM loss (cross entropy) of each pair and its two negatives, `(pairs, 3)` in float32.

    Args:
        true_pairs: Logits `(pairs, 2)`.
        with_other_text: Logits `(pairs, 2)` of the images with negative texts.
        with_other_image: Logits `(pairs, 2)` of the texts with negative images.
        exists: `(pairs,)`, whether negatives exist; their losses are 0 if not.
    """
    logits = torch.stack([true_pairs, with_other_text, with_other_image], dim=1).float()
    labels = torch.tensor([MATCHING, DIFFERENT, DIFFERENT], device=logits.device).expand(len(logits), 3)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return torch.cat([losses[:, :1], losses[:, 1:] * exists[:, None]], dim=1)


@torch.no_grad()
def split_loss(
    images: torch.Tensor, texts: torch.Tensor, image_of_text: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """The ITC loss over a whole split, without soft targets; independent of batches and processes.

    Args:
        images: Features `(images, width)`.
        texts: Features `(texts, width)`.
        image_of_text: The index of each text's image, `(texts,)`; every image has a text.
        temperature: Divisor of the similarities.
    """
    to_images, to_texts = torch.zeros(len(texts)), torch.zeros(len(images))
    for rows in torch.arange(len(texts)).split(BLOCK):
        likely = _similarities(texts[rows], images, temperature).log_softmax(1)
        to_images[rows] = -likely.gather(1, image_of_text[rows, None])[:, 0]
    for rows in torch.arange(len(images)).split(BLOCK):
        likely = _similarities(images[rows], texts, temperature).log_softmax(1)
        own = rows[:, None] == image_of_text
        to_texts[rows] = -(likely * own).sum(1) / own.sum(1)
    return (to_images.mean() + to_texts.mean()) / 2
