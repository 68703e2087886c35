"""BLIP with its text encoder and text decoder in one network, saved as a stock captioner and a stock matcher."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ModelOutput
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel
from transformers.utils import cached_file

from blip_recipe.models.captioner import CaptioningModel, CaptioningOutput
from blip_recipe.models.contrastive import Features
from blip_recipe.models.image_text import TEMPERATURE_RANGE, ImageTextModel, configured_temperature

MATCHER = "matcher"
"""The folder of the matcher in the directory of a captioner."""

CAPTIONER_PARTS = ("vision_model", "text_decoder")
MATCHER_PARTS = ("vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head")


@dataclass
class PretrainOutput(ModelOutput):
    """The losses of `BlipForPretraining`.

    Attributes:
        contrastive_losses: The ITC loss of each pair, `(pairs,)` in float32.
        matching_losses: The ITM losses of each pair and its two negatives, `(pairs, 3)` in float32.
        token_losses: `(pairs, tokens - 1)` in float32: the cross entropy of each next token, 0 where it is not
            predicted. Returned with `labels`.
        logits: `(pairs, tokens, vocabulary)`. Returned without `labels`.
    """

    contrastive_losses: torch.Tensor | None = None
    matching_losses: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def share_text_weights(encoder: BlipTextModel, decoder: BlipTextModel) -> None:
    """Let an encoder use the modules of a decoder, except those of self-attention.

    Both read texts in the same way, but an encoder looks in both directions (arXiv 2201.12086, section 3.2). The
    original shares all weights whose names do not contain `/attention` (`models/blip_pretrain.py`): the embeddings,
    cross-attention and the feed-forward layers.
    """
    encoder.embeddings = decoder.embeddings
    for own, other in zip(cast("Any", encoder.encoder.layer), cast("Any", decoder.encoder.layer), strict=True):
        own.crossattention, own.intermediate, own.output = other.crossattention, other.intermediate, other.output


class BlipForPretraining(ImageTextModel, CaptioningModel, BlipForConditionalGeneration):  # type: ignore[misc]
    """`BlipForConditionalGeneration` and `BlipForImageTextRetrieval` in one network.

    The image encoder is shared, and all text weights except those of self-attention. `from_pretrained` takes a
    captioner, a matcher, or what `save_pretrained` wrote: a captioner with a matcher in the folder `matcher`. From a
    captioner or a matcher alone, the other one starts with its weights, self-attention included; the heads it lacks
    are new.
    """

    stock_class = BlipForConditionalGeneration
    other_stock_classes = (BlipForImageTextRetrieval,)
    lora_layers = r"text_(decoder\.bert|encoder)\.encoder\..*\.(query|key|value|dense)"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.init_from_stock()

    def init_from_stock(self) -> None:
        """Add the parts that the stock model does not have, and share the text weights."""
        config: Any = self.config
        if not hasattr(self, "text_decoder"):
            self.text_decoder = BlipTextLMHeadModel(config.text_config)
            self.text_decoder.bert = copy.deepcopy(self.text_encoder)
            self.decoder_input_ids = config.text_config.bos_token_id
            self.generation_config = GenerationConfig.from_model_config(config)
        if not hasattr(self, "text_encoder"):
            self.text_encoder = copy.deepcopy(self.text_decoder.bert)
            self.vision_proj = self._new_layer(config.vision_config.hidden_size, config.image_text_hidden_size)
            self.text_proj = self._new_layer(config.text_config.hidden_size, config.image_text_hidden_size)
            self.itm_head = self._new_layer(config.text_config.hidden_size, 2)
        self.temperature = nn.Parameter(torch.tensor(configured_temperature(config)))
        share_text_weights(self.text_encoder, self.text_decoder.bert)
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        self.tie_weights()
        device: Any = self.vision_model.device
        self.to(device)

    def _new_layer(self, inputs: int, outputs: int) -> nn.Linear:
        layer = nn.Linear(inputs, outputs)
        self._init_weights(layer)
        return layer

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], *args: Any, **kwargs: Any) -> BlipForPretraining:  # type: ignore[override]
        """Load a captioner, a matcher, or both, from a directory or a Hub id; `kwargs` are those of transformers."""
        hub = {key: kwargs[key] for key in ("revision", "token", "local_files_only") if key in kwargs}
        own_code = {"trust_remote_code": kwargs.get("trust_remote_code", False)}
        config = AutoConfig.from_pretrained(name, **hub, **own_code)
        is_matcher = BlipForImageTextRetrieval.__name__ in (config.architectures or ())
        stock = BlipForImageTextRetrieval if is_matcher else BlipForConditionalGeneration
        model = cls.from_stock(cast("PreTrainedModel", stock.from_pretrained(name, *args, **kwargs)))
        path = cached_file(
            fspath(name), f"{MATCHER}/model.safetensors", _raise_exceptions_for_missing_entries=False, **hub
        )
        if path:
            model.load_matcher(path)
            model.temperature.data.fill_(configured_temperature(config))
        return model

    def load_matcher(self, path: str | PathLike[str]) -> None:
        """Load the weights of a matcher that was saved beside the captioner of this model."""
        self.load_state_dict(load_file(path), strict=False)

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        *,
        momentum: Features | None = None,
        candidates: Features | None = None,
        alpha: float = 0.0,
        uniform: torch.Tensor | None = None,
        negatives_from_all: bool = False,
        **kwargs: Any,
    ) -> PretrainOutput | CaptioningOutput:
        """Compute the three losses of image-text pairs; without `momentum`, predict tokens as a captioner does.

        Args:
            pixel_values: `(pairs, 3, height, width)`.
            input_ids: `(pairs, tokens)`, starting with `[CLS]`; the decoder reads `[DEC]` instead.
            attention_mask: `(pairs, tokens)`, 0 on padding.
            position_ids: Only without `momentum`, for several captions per image (see `CaptioningModel.forward`).
            labels: `(pairs, tokens)`, not shifted; `-100` is not predicted.
            image_embeds: Only without `momentum`, instead of `pixel_values`.
            label_smoothing: Label smoothing of the token losses (BLIP: 0.1).
            momentum: Momentum features of these pairs, with the ids of their images.
            candidates: Momentum features that ITC compares with: the batches of all processes, then the queue.
            alpha: Weight of the soft targets from the momentum encoders.
            uniform: `(pairs, 2)`, random numbers that sample a negative text and a negative image for each pair.
            negatives_from_all: Whether to sample negatives from all processes, or only from this one.
            kwargs: Ignored, except `output_attentions` without `momentum`.
        """
        if momentum is None:
            captioner = pixel_values, input_ids, attention_mask, position_ids, labels, image_embeds, label_smoothing
            return CaptioningModel.forward(self, *captioner, **kwargs)
        assert pixel_values is not None
        assert input_ids is not None
        assert attention_mask is not None
        assert candidates is not None
        assert uniform is not None
        embeds = self.encode_images(pixel_values)
        pairs = self.pair_losses(
            embeds, input_ids, attention_mask, momentum, candidates, alpha, uniform, negatives_from_all
        )
        start = torch.full_like(input_ids[:, :1], cast("Any", self.config.text_config).bos_token_id)
        text = CaptioningModel.forward(
            self,
            input_ids=torch.cat([start, input_ids[:, 1:]], dim=1),
            attention_mask=attention_mask,
            labels=labels,
            image_embeds=embeds,
            label_smoothing=label_smoothing,
        )
        return PretrainOutput(pairs.contrastive, pairs.matching, text.token_losses, text.logits)

    def captioner(self) -> BlipForConditionalGeneration:
        """The stock captioner; both models share all modules."""
        return self._stock_model(BlipForConditionalGeneration, CAPTIONER_PARTS)

    def matcher(self) -> BlipForImageTextRetrieval:
        """The stock matcher, with the temperature of ITC in its configuration; both models share all modules."""
        return self._stock_model(BlipForImageTextRetrieval, MATCHER_PARTS)

    def _stock_model(self, stock_class: Any, parts: tuple[str, ...]) -> Any:
        stock = stock_class.__new__(stock_class)
        stock.__dict__ = dict(self.__dict__)
        stock.__dict__["_modules"] = {name: self._modules[name] for name in parts}
        stock.__dict__["_parameters"] = {}
        stock.config = copy.deepcopy(self.config)
        least, most = TEMPERATURE_RANGE
        # Clamp here too: the last step may have left the range.
        stock.config.logit_scale_init_value = -math.log(min(max(self.temperature.item(), least), most))
        stock.all_tied_weights_keys = stock.get_expanded_tied_weights_keys(all_submodels=True)
        return stock

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, state_dict: Any = None, **kwargs: Any
    ) -> None:
        """Save the stock captioner, and the stock matcher in the folder `matcher`."""
        self.captioner().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        folder = f"{fspath(save_directory)}/{MATCHER}"
        self.matcher().save_pretrained(folder, is_main_process=is_main_process, **kwargs)
