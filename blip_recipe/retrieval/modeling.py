"""BLIP that learns which texts belong to which pictures; same weights and names as the stock class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.modeling_outputs import ModelOutput

from blip_recipe.models.stock import StockModel
from blip_recipe.retrieval.gathering import gather, gather_with_gradients, pad_to_longest
from blip_recipe.retrieval.losses import Features, contrastive_losses, matching_losses, sample_negatives

TEMPERATURE_RANGE = (0.001, 0.5)
"""What the temperature is kept within (`models/blip_retrieval.py` of the original)."""


@dataclass
class RetrievalOutput(ModelOutput):
    """What `BlipForRetrieval` computes.

    Attributes:
        contrastive_losses: ITC of each pair, `(pairs,)` in float32.
        matching_losses: ITM of each pair, of its image with another text and of its text with another image,
            `(pairs, 3)` in float32.
    """

    contrastive_losses: torch.Tensor | None = None
    matching_losses: torch.Tensor | None = None


class BlipForRetrieval(StockModel, BlipForImageTextRetrieval):
    """`BlipForImageTextRetrieval` that is trained as in the paper (arXiv 2201.12086, section 3.2).

    Loads and saves the stock weights under the stock names. The temperature of ITC, which no stock checkpoint has, is
    `logit_scale_init_value` of the configuration, the logarithm of its inverse.
    """

    stock_class = BlipForImageTextRetrieval
    lora_layers = r"text_encoder\.encoder\..*\.(query|key|value|dense)"
    _keys_to_ignore_on_save = ["temperature"]  # noqa: RUF012 - as transformers has it
    _keys_to_ignore_on_load_missing = [r"temperature"]  # noqa: RUF012

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.temperature = nn.Parameter(torch.tensor(configured_temperature(config)))

    def init_from_stock(self) -> None:
        """Add the temperature of ITC."""
        self.temperature = nn.Parameter(torch.tensor(configured_temperature(self.config), device=self.device))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            # Made without memory by `from_pretrained`, and in no file of weights.
            self.temperature.fill_(configured_temperature(self.config))

    @property
    def enc_token_id(self) -> int:
        """`[ENC]`, which begins a text that is read with an image: the original adds it right after `[DEC]`."""
        return cast("Any", self.config.text_config).bos_token_id + 1

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        momentum: Features,
        candidates: Features,
        alpha: float,
        uniform: torch.Tensor,
        negatives_from_all: bool = True,
        **kwargs: Any,
    ) -> RetrievalOutput:
        """Losses of pairs, an image and a text of it each.

        Args:
            pixel_values: `(pairs, 3, height, width)`.
            input_ids: `(pairs, tokens)`, `[CLS]` first.
            attention_mask: `(pairs, tokens)`, 0 on padding.
            momentum: Features of the momentum encoders for these pairs, with the numbers of their images.
            candidates: Those that ITC compares with: of all processes, this one's rows at their place, then the queue.
            alpha: Share of the momentum encoders in the targets of ITC.
            uniform: `(pairs, 2)`, random numbers that choose a text for each image and an image for each text.
            negatives_from_all: Whether hard negatives are those of all processes, or of this one alone.
            kwargs: Not used; that they are taken tells Trainer to count the pairs of all accumulated batches.
        """
        image_embeds = self.encode_images(pixel_values)
        own = Features(
            self.image_features(image_embeds), self.text_features(input_ids, attention_mask), ids=momentum.ids
        )
        return RetrievalOutput(
            contrastive_losses=contrastive_losses(own, momentum, candidates, self.temperature, alpha),
            matching_losses=self._matching_losses(
                image_embeds, input_ids, attention_mask, own, uniform, negatives_from_all
            ),
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
            # What is filled up is masked; `[PAD]` is 0 in BERT's vocabulary, and would do no harm if it were not.
            input_ids, attention_mask = pad_to_longest(input_ids), pad_to_longest(attention_mask)
            other_ids, other_mask = gather(input_ids), gather(attention_mask)
            other_embeds = gather_with_gradients(image_embeds)
        same = own.ids[:, None] == others.ids
        other_text, exists = sample_negatives(own.image, others.text, same, self.temperature, uniform[:, 0])
        other_image, _ = sample_negatives(own.text, others.image, same, self.temperature, uniform[:, 1])
        # An image's own text and the other one stand together, and share its keys and values.
        logits = self.match_logits(
            image_embeds,
            torch.stack([input_ids, other_ids[other_text]], dim=1).flatten(0, 1),
            torch.stack([attention_mask, other_mask[other_text]], dim=1).flatten(0, 1),
        ).unflatten(0, (-1, 2))
        with_other_image = self.match_logits(other_embeds[other_image], input_ids, attention_mask)
        return matching_losses(logits[:, 0], logits[:, 1], with_other_image, exists)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image embeddings `(images, patches, width)` of `pixel_values` `(images, 3, height, width)`."""
        return self.vision_model(pixel_values=pixel_values).last_hidden_state

    def image_features(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """What texts are compared with, `(images, image_text_hidden_size)` of length 1."""
        return F.normalize(self.vision_proj(image_embeds[:, 0]), dim=-1)

    def text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What images are compared with, `(texts, image_text_hidden_size)` of length 1; texts begin with `[CLS]`."""
        states = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return F.normalize(self.text_proj(states[:, 0]), dim=-1)

    def match_logits(
        self, image_embeds: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Logits of texts against their images, `(images * k, 2)`: different, matching.

        Args:
            image_embeds: `(images, patches, width)`.
            input_ids: `(images * k, tokens)`, the `k` texts of an image one after the other; the first token, which
                is `[CLS]`, is read as `[ENC]`.
            attention_mask: As `input_ids`, 0 on padding.
        """
        if not self.uses_sdpa:
            # Only our attention lets the texts of an image share its keys and values.
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
        """Keep the temperature within `TEMPERATURE_RANGE`."""
        self.temperature.clamp_(*TEMPERATURE_RANGE)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save weights under the stock names, and a configuration that knows the temperature."""
        least, most = TEMPERATURE_RANGE
        # The last step may have left the range, which only the next one would have gone back to.
        self.config.logit_scale_init_value = -math.log(min(max(self.temperature.item(), least), most))
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)


def configured_temperature(config: Any) -> float:
    """The temperature of ITC that a configuration begins with; BLIP's own is 0.07."""
    return math.exp(-config.logit_scale_init_value)
