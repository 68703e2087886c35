"""The two losses of matching: contrastive with soft targets, and of pairs with hard negatives.

Both are as in the original repository (`models/blip_retrieval.py`), whose formulas are those of ALBEF (Li et al., 2021,
https://arxiv.org/abs/2107.07651, equations 1 to 4 and 6).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

DIFFERENT, MATCHING = 0, 1
"""Classes of the matching head."""

BLOCK = 1024
"""Queries whose similarities to a whole split are held at a time."""


class Features(NamedTuple):
    """Features of images and texts of the same pairs, of length 1.

    Attributes:
        image: `(pairs, width)`.
        text: `(pairs, width)`.
        ids: `(pairs,)`, the number of each pair's image.
    """

    image: torch.Tensor
    text: torch.Tensor
    ids: torch.Tensor


def contrastive_losses(
    own: Features, momentum: Features, candidates: Features, temperature: torch.Tensor, alpha: float
) -> torch.Tensor:
    """ITC of each pair, the mean of both directions, `(pairs,)` in float32.

    Args:
        own: Features of the model that is trained.
        momentum: Those of the momentum encoders, for the same pairs.
        candidates: Momentum features that the pairs are compared with, their own among them.
        temperature: What similarities are divided by.
        alpha: How much of the target is what the momentum encoders find; the rest is shared by all candidates with the
            id of the pair.
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
    # Temperatures down to 0.001 leave bfloat16 nothing of what sets candidates apart.
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
    """A candidate of another image for each query, the likelier the more similar it is (a softmax of similarities).

    Args:
        queries: Features `(queries, width)`.
        candidates: Features of the other kind `(candidates, width)`.
        same: `(queries, candidates)`, where both are of one image.
        temperature: What similarities are divided by.
        uniform: `(queries,)`, random numbers from 0 to below 1 that make the choice.

    Returns:
        Row numbers of candidates `(queries,)`, and whether there is any candidate of another image `(queries,)`.
    """
    # Left out before the softmax, so that however sure the model is of the true pair, the others keep their shares.
    similarities = _similarities(queries, candidates, temperature).double().masked_fill(same, -torch.inf)
    exists = ~same.all(1)
    shares = similarities.masked_fill(~exists[:, None], 0.0).softmax(1)
    sums = shares.cumsum(1)
    drawn = torch.searchsorted(sums, uniform.double()[:, None] * sums[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=len(candidates) - 1), exists


def matching_losses(
    true_pairs: torch.Tensor, with_other_text: torch.Tensor, with_other_image: torch.Tensor, exists: torch.Tensor
) -> torch.Tensor:
    """ITM of each pair and its two negatives, `(pairs, 3)` in float32: the cross entropy of two classes.

    Args:
        true_pairs: Logits `(pairs, 2)`.
        with_other_text: Logits `(pairs, 2)` of images with texts of others.
        with_other_image: Logits `(pairs, 2)` of texts with other images.
        exists: `(pairs,)`; where there was no other image, the losses of negatives are 0.
    """
    logits = torch.stack([true_pairs, with_other_text, with_other_image], dim=1).float()
    labels = torch.tensor([MATCHING, DIFFERENT, DIFFERENT], device=logits.device).expand(len(logits), 3)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return torch.cat([losses[:, :1], losses[:, 1:] * exists[:, None]], dim=1)


@torch.no_grad()
def split_loss(
    images: torch.Tensor, texts: torch.Tensor, image_of_text: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """ITC of a whole split against itself, without soft targets: the same whatever the batches and processes.

    Args:
        images: Features `(images, width)`.
        texts: Features `(texts, width)`.
        image_of_text: The number of each text's image, `(texts,)`; every image has a text.
        temperature: What similarities are divided by.
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
