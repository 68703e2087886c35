"""The image-text side of BLIP: features of ITC, logits of ITM, and the losses of both."""

from __future__ import annotations

import math
from os import PathLike
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from blip_recipe.models.contrastive import Features, contrastive_losses, matching_losses, sample_negatives
from blip_recipe.models.gathering import gather, gather_with_gradients, pad_to_longest
from blip_recipe.models.stock import StockModel
from blip_recipe.models.vision import encode_images

TEMPERATURE_RANGE = (0.001, 0.5)
"""The range of the temperature (`models/blip_retrieval.py` of the original)."""


class PairLosses(NamedTuple):
    """The losses of image-text pairs.

    Attributes:
        contrastive: The ITC loss of each pair, `(pairs,)` in float32.
        matching: The ITM losses of each pair, of its image with a negative text, and of its text with a negative
            image, `(pairs, 3)` in float32.
    """

    contrastive: torch.Tensor
    matching: torch.Tensor


class ImageTextModel(StockModel):
    """A model with the parts of `BlipForImageTextRetrieval` and the temperature of ITC.

    Stock checkpoints do not have the temperature; it is saved in the configuration as `logit_scale_init_value`, the
    logarithm of its inverse.

    Attributes:
        temperature: The divisor of similarities, a parameter.
    """

    learnt_beside_lora = ("temperature",)

    vision_model: BlipVisionModel
    text_encoder: BlipTextModel
    vision_proj: nn.Linear
    text_proj: nn.Linear
    itm_head: nn.Linear
    temperature: nn.Parameter

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            # `from_pretrained` creates it on the meta device, and no weight file has it.
            self.temperature.fill_(configured_temperature(self.config))

    @property
    def enc_token_id(self) -> int:
        """The id of `[ENC]`, the first token of texts in the image-grounded encoder; it follows the id of `[DEC]`."""
        return cast("Any", self.config.text_config).bos_token_id + 1

    def pair_losses(
        self,
        image_embeds: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        momentum: Features,
        candidates: Features,
        alpha: float,
        uniform: torch.Tensor,
        negatives_from_all: bool,
    ) -> PairLosses:
        """Compute the losses of ITC and ITM.

        Args:
            image_embeds: `(pairs, patches, width)`.
            input_ids: `(pairs, tokens)`, starting with `[CLS]`.
            attention_mask: `(pairs, tokens)`, 0 on padding.
            momentum: Momentum features of these pairs, with the ids of their images.
            candidates: Momentum features that ITC compares with: the batches of all processes, then the queue.
            alpha: Weight of the soft targets from the momentum encoders.
            uniform: `(pairs, 2)`, random numbers that sample a negative text and a negative image for each pair.
            negatives_from_all: Whether to sample negatives from all processes, or only from this one.
        """
        own = Features(
            self.image_features(image_embeds), self.text_features(input_ids, attention_mask), ids=momentum.ids
        )
        return PairLosses(
            contrastive_losses(own, momentum, candidates, self.temperature, alpha),
            self._matching_losses(image_embeds, input_ids, attention_mask, own, uniform, negatives_from_all),
        )

    def _matching_losses(
        self,
        image_embeds: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        own: Features,
        uniform: torch.Tensor,
        negatives_from_all: bool,
    ) -> torch.Tensor:
        others = Features(own.image.detach(), own.text.detach(), own.ids)
        other_ids, other_mask, other_embeds = input_ids, attention_mask, image_embeds
        if negatives_from_all:
            others = Features(*map(gather, others))
            # The padding is masked, so its id (0, which is `[PAD]` in BERT's vocabulary) does not matter.
            input_ids, attention_mask = pad_to_longest(input_ids), pad_to_longest(attention_mask)
            other_ids, other_mask = gather(input_ids), gather(attention_mask)
            other_embeds = gather_with_gradients(image_embeds)
        same = own.ids[:, None] == others.ids
        other_text, exists = sample_negatives(own.image, others.text, same, self.temperature, uniform[:, 0])
        other_image, _ = sample_negatives(own.text, others.image, same, self.temperature, uniform[:, 1])
        # The true and the negative text of an image are adjacent and share its keys and values.
        logits = self.match_logits(
            image_embeds,
            torch.stack([input_ids, other_ids[other_text]], dim=1).flatten(0, 1),
            torch.stack([attention_mask, other_mask[other_text]], dim=1).flatten(0, 1),
        ).unflatten(0, (-1, 2))
        with_other_image = self.match_logits(other_embeds[other_image], input_ids, attention_mask)
        return matching_losses(logits[:, 0], logits[:, 1], with_other_image, exists)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode `pixel_values` `(images, 3, height, width)` to `(images, patches, width)`."""
        return encode_images(self.vision_model, pixel_values)

    def image_features(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Unit-length ITC features of images, `(images, image_text_hidden_size)`."""
        return F.normalize(self.vision_proj(image_embeds[:, 0]), dim=-1)

    def text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Unit-length ITC features of texts that start with `[CLS]`, `(texts, image_text_hidden_size)`."""
        states = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return F.normalize(self.text_proj(states[:, 0]), dim=-1)

    def match_logits(
        self, image_embeds: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """ITM logits of texts with their images, `(images * k, 2)`, of the classes different and matching.

        Args:
            image_embeds: `(images, patches, width)`.
            input_ids: `(images * k, tokens)`, with the `k` texts of an image next to each other. The first token
                `[CLS]` is replaced by `[ENC]`.
            attention_mask: `(images * k, tokens)`, 0 on padding.
        """
        if not self.uses_sdpa:
            # In eager attention the texts of an image cannot share its keys and values.
            image_embeds = image_embeds.repeat_interleave(len(input_ids) // len(image_embeds), 0)
        start = torch.full_like(input_ids[:, :1], self.enc_token_id)
        states = self.text_encoder(
            input_ids=torch.cat([start, input_ids[:, 1:]], dim=1),
            attention_mask=attention_mask,
            encoder_hidden_states=image_embeds,
        ).last_hidden_state
        return self.itm_head(states[:, 0])

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Clamp the temperature to `TEMPERATURE_RANGE`."""
        self.temperature.clamp_(*TEMPERATURE_RANGE)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save weights under the stock names, and the temperature in the configuration."""
        least, most = TEMPERATURE_RANGE
        # Clamp here too: the last step may have left the range.
        self.config.logit_scale_init_value = -math.log(min(max(self.temperature.item(), least), most))
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)


def configured_temperature(config: Any) -> float:
    """The initial temperature of ITC in a configuration; BLIP's is 0.07."""
    return math.exp(-config.logit_scale_init_value)
