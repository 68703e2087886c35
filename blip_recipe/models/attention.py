"""Attention of BLIP through `scaled_dot_product_attention`, and what our BLIPs have in common with the stock ones."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    Mixin = PreTrainedModel
else:
    Mixin = object


class SdpaVisionAttention(BlipAttention):
    """The image encoder's self-attention through `scaled_dot_product_attention`; the stock one up to rounding."""

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """`(images, patches, width)` to the same shape; no attention map is kept."""
        images, patches, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(images, patches, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        return self.projection(context.transpose(1, 2).reshape(images, patches, width)), None


class SdpaTextAttention(BlipTextSelfAttention):
    """Self- and cross-attention of the text decoder through `scaled_dot_product_attention`.

    While generating, cross-attention may find keys and values of `images` in its cache for `images * k` captions: the
    `k` beams or samples of an image are then folded into the query axis.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Any | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """`(rows, tokens, width)` to the same shape; no attention map is kept."""
        key, value = self._keys_and_values(hidden_states, encoder_hidden_states, cache)
        query = self._heads(self.query(hidden_states).view(len(key), -1, hidden_states.shape[-1]))
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            # In cross-attention, that of the states looked at, where they have padding: pictures have none.
            attn_mask=attention_mask,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return context.transpose(1, 2).reshape(hidden_states.shape), None

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

    def project(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(rows, heads, positions, width of a head)` of `states` `(rows, positions, width)`."""
        return self._heads(self.key(states)), self._heads(self.value(states))

    def _keys_and_values(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None, cache: Any | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of text or image, kept in `cache` while generating."""
        if encoder_hidden_states is None:
            key, value = self.project(hidden_states)
            return (key, value) if cache is None else cache.self_attention_cache.update(key, value, self.layer_idx)
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = self.project(encoder_hidden_states)
        if cache is None:
            return key, value
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(key, value, self.layer_idx)


SDPA_CLASSES = {BlipAttention: SdpaVisionAttention, BlipTextSelfAttention: SdpaTextAttention}
EAGER_CLASSES = {sdpa: eager for eager, sdpa in SDPA_CLASSES.items()}


class StockModel(Mixin):
    """A BLIP with the weights, and the names of weights, of a stock class.

    What it saves names the stock class, which everybody has, and so loads without this package.

    Attributes:
        stock_class: That class.
        lora_layers: The default targets of LoRA, as a pattern of module names: every attention and feed-forward layer
            of the text.
        decoding: How it usually generates, where that is not as a captioner does (`CaptionSettings`).
    """

    stock_class: ClassVar[type[PreTrainedModel]]
    lora_layers: ClassVar[str]
    decoding: ClassVar[dict[str, Any]] = {}

    def use_sdpa(self) -> Self:
        """Switch every attention to `scaled_dot_product_attention` (the stock classes only have eager attention)."""
        return self._switch_attention(SDPA_CLASSES)

    def _switch_attention(self, classes: Mapping[type, type]) -> Self:
        for module in self.modules():
            # Another class on the same module keeps weights, names, adapters and quantised layers as they are.
            module.__class__ = classes.get(type(module), type(module))
        return self

    @property
    def uses_sdpa(self) -> bool:
        """Whether attention goes through `scaled_dot_product_attention`."""
        return any(isinstance(module, SdpaVisionAttention) for module in self.modules())

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save weights and configuration, which names the stock class."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.config.architectures = [self.stock_class.__name__]
            self.config.save_pretrained(save_directory)
