"""A BLIP model for image-text retrieval with the losses of the paper and the weights of the stock class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.modeling_outputs import ModelOutput

from blip_recipe.models.contrastive import Features
from blip_recipe.models.matching import MatchingModel


@dataclass
class RetrievalOutput(ModelOutput):
    """The output of `BlipForRetrieval`.

    Attributes:
        contrastive_losses: The ITC loss of each pair, `(pairs,)` in float32.
        matching_losses: The ITM losses of each pair, of its image with a negative text, and of its text with a negative
            image, `(pairs, 3)` in float32.
    """

    contrastive_losses: torch.Tensor | None = None
    matching_losses: torch.Tensor | None = None


class BlipForRetrieval(MatchingModel):
    """`BlipForImageTextRetrieval` with the training losses of the paper (arXiv 2201.12086, section 3.2).

    It loads and saves the stock weights under the stock names, and the temperature of ITC in the configuration.
    """

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        momentum: Features,
        candidates: Features,
        alpha: float,
        uniform: torch.Tensor,
        negatives_from_all: bool = True,
        image_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RetrievalOutput:
        """Compute the losses of image-text pairs.

        Args:
            pixel_values: `(pairs, 3, height, width)`.
            input_ids: `(pairs, tokens)`, starting with `[CLS]`.
            attention_mask: `(pairs, tokens)`, 0 on padding.
            momentum: Momentum features of these pairs, with the ids of their images.
            candidates: Momentum features that ITC compares with: the batches of all processes, then the queue.
            alpha: Weight of the soft targets from the momentum encoders.
            uniform: `(pairs, 2)`, random numbers that sample a negative text and a negative image for each pair.
            negatives_from_all: Whether to sample negatives from all processes, or only from this one.
            image_embeds: `(pairs, patches, width)`, instead of `pixel_values`.
            kwargs: Ignored. Because `forward` accepts them, Trainer counts the pairs of all accumulated batches.
        """
        losses = self.pair_losses(
            self.encode_images(cast("torch.Tensor", pixel_values)) if image_embeds is None else image_embeds,
            cast("torch.Tensor", input_ids),
            cast("torch.Tensor", attention_mask),
            momentum,
            candidates,
            alpha,
            uniform,
            negatives_from_all,
        )
        return RetrievalOutput(contrastive_losses=losses.contrastive, matching_losses=losses.matching)
