"""BLIP's attention with `scaled_dot_product_attention`; the stock classes only have eager attention."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from blip_recipe.models.linear import OneDnnLinear, product

# transformers 5.24 renamed it to `cache`.
_STOCK_ARGUMENTS = inspect.signature(BlipTextSelfAttention.forward).parameters
CACHE_ARGUMENT = "cache" if "cache" in _STOCK_ARGUMENTS else "past_key_values"
"""The name under which BLIP's text layers and `generate` take the attention cache."""


class SdpaVisionAttention(BlipAttention):
    """Self-attention of the image encoder with `scaled_dot_product_attention`; equal to the stock up to rounding."""

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """Map `(images, patches, width)` to the same shape; returns no attention map."""
        images, patches, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(images, patches, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        return self.projection(context.transpose(1, 2).reshape(images, patches, width)), None


class SdpaTextAttention(BlipTextSelfAttention):
    """Self- and cross-attention of texts with `scaled_dot_product_attention`.

    In generation, the cross-attention cache may hold one row per image for `images * k` captions. The `k` beams or
    samples of an image are then folded into the query axis.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Map `(rows, tokens, width)` to the same shape; returns no attention map."""
        image_embeds = getattr(kwargs.get(CACHE_ARGUMENT), "image_embeds", None)
        if encoder_hidden_states is not None and image_embeds is not None:
            return self._attend_to(image_embeds, hidden_states), None
        key, value = self._keys_and_values(hidden_states, encoder_hidden_states, kwargs.get(CACHE_ARGUMENT))
        query = self._heads(self.query(hidden_states).view(key.shape[0], -1, hidden_states.shape[-1]))
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            # In cross-attention, the mask of the encoder states; image patches need none.
            attn_mask=attention_mask,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return context.transpose(1, 2).reshape(hidden_states.shape), None

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

    def project(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(rows, heads, positions, head width)` of `states` `(rows, positions, width)`."""
        return self._heads(self.key(states)), self._heads(self.value(states))

    @property
    def has_plain_weights(self) -> bool:
        """Whether keys and values are products with float32 weights, without adapter, and without autocast."""
        layers = (self.key, self.value)
        plain = all(type(each) in (nn.Linear, OneDnnLinear) and each.weight.dtype == torch.float32 for each in layers)
        return plain and not torch.is_autocast_enabled(self.key.weight.device.type)

    def _attend_to(self, states: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Cross-attention to `states` `(images, positions, encoder width)` without their keys and values.

        For the query `q` and the weights `K` and `V` of a head, `q (states K)^T = (q K^T) states^T`, and
        `weights (states V) = (weights states) V`. The bias of the keys adds the same to all scores of a query.
        """
        heads, size, images = self.num_attention_heads, self.attention_head_size, len(states)
        query = self.query(hidden_states).view(-1, heads, size).transpose(0, 1)
        query = torch.bmm(query, self.key.weight.view(heads, size, -1)) * size**-0.5
        # (heads, images * k, width) to (images, heads * k, width): one product for all queries of an image.
        query = query.view(heads, images, -1, query.shape[-1]).transpose(0, 1)
        attend = _attend_with_onednn if isinstance(self.key, OneDnnLinear) else _attend
        seen = attend(query.flatten(1, 2), states).view(query.shape).transpose(0, 1).flatten(1, 2)
        context = torch.bmm(seen, self.value.weight.view(heads, size, -1).transpose(1, 2)).transpose(0, 1)
        return (context.flatten(1) + self.value.bias).view(hidden_states.shape)

    def _keys_and_values(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None, cache: Any | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the text or the encoder states, cached during generation."""
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


def _attend(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The means of `states` `(images, positions, width)` that `query` `(images, queries, width)` gives weight to."""
    return torch.bmm(torch.bmm(query, states.transpose(1, 2)).softmax(-1), states)


def _attend_with_onednn(query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """`_attend`, image by image: the second product finds the states of an image in the processor's cache."""
    return torch.stack(
        [product(product(own, seen).softmax(-1), seen.t()) for own, seen in zip(query, states, strict=True)]
    )


SDPA_CLASSES = {BlipAttention: SdpaVisionAttention, BlipTextSelfAttention: SdpaTextAttention}
EAGER_CLASSES = {sdpa: eager for eager, sdpa in SDPA_CLASSES.items()}
