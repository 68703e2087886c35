"""Collate images and captions into the batches of pre-training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.training.caption_collator import CaptionCollator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class PretrainCollator(CaptionCollator):
    """Batches rows of `CaptionDataset` like a packed `CaptionCollator`, with the ids that ITC compares."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `rows`. `captions_id` `(images,)` is equal for images with the same captions."""
        return {**super().__call__(rows), "captions_id": torch.tensor([row["captions_id"] for row in rows])}
