"""BLIP that encodes an image once for all its captions; same weights and names as the stock class."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration
from transformers.models.blip.modeling_blip import BlipAttention, BlipForConditionalGenerationModelOutput
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of positions that are not predicted: padding and prompt."""


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

    In training, cross-attention may get `images * k` captions and `images` encoded images: the `k` captions of an image
    are then folded into the query axis, so that its keys and values are projected once.
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
        """`(captions, tokens, width)` to the same shape; no attention map is kept."""
        captions, tokens, width = hidden_states.shape
        query = self.query(hidden_states)
        if encoder_hidden_states is not None:
            query = query.view(encoder_hidden_states.shape[0], -1, width)
        key, value = self._keys_and_values(hidden_states, encoder_hidden_states, cache)
        context = F.scaled_dot_product_attention(
            self._heads(query),
            key,
            value,
            # The stock class never hands an image mask to cross-attention: pictures have no padding.
            attn_mask=attention_mask if encoder_hidden_states is None else None,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return context.transpose(1, 2).reshape(captions, tokens, width), None

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

    def _keys_and_values(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None, cache: Any | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(batch, heads, positions, width of a head)`, kept in `cache` while generating."""
        is_cross = encoder_hidden_states is not None
        if cache is not None and is_cross and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        states = encoder_hidden_states if is_cross else hidden_states
        key, value = self._heads(self.key(states)), self._heads(self.value(states))
        if cache is None:
            return key, value
        if not is_cross:
            return cache.self_attention_cache.update(key, value, self.layer_idx)
        cache.is_updated[self.layer_idx] = True
        return cache.cross_attention_cache.update(key, value, self.layer_idx)


SDPA_CLASSES = {BlipAttention: SdpaVisionAttention, BlipTextSelfAttention: SdpaTextAttention}


class BlipForCaptioning(BlipForConditionalGeneration):
    """`BlipForConditionalGeneration` for several captions an image.

    Loads and saves the stock weights under the stock names, and saves the stock class name, so that what it writes
    loads without this package.
    """

    def use_sdpa(self) -> BlipForCaptioning:
        """Switch every attention to `scaled_dot_product_attention` (the stock class only has eager attention)."""
        for module in self.modules():
            # Another class on the same module keeps weights, names, adapters and quantised layers as they are.
            module.__class__ = SDPA_CLASSES.get(type(module), type(module))
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BlipForConditionalGenerationModelOutput:
        """Logits of every caption token given its image and the tokens before it.

        Args:
            pixel_values: `(images, 3, height, width)`, each image once.
            input_ids: `(captions, tokens)`.
            attention_mask: `(captions, tokens)`, 0 on padding.
            image_index: `(captions,)`, the image of each caption, ascending; left out for one caption an image.

        Returns:
            `logits` of shape `(captions, tokens, vocabulary)` and `image_embeds` of shape `(images, patches, width)`.
        """
        image_embeds = self.vision_model(pixel_values=pixel_values).last_hidden_state
        outputs = self.text_decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=self._embeds_for_captions(image_embeds, image_index),
            use_cache=False,
            **kwargs,
        )
        return BlipForConditionalGenerationModelOutput(logits=outputs.logits, image_embeds=image_embeds)

    def _embeds_for_captions(self, image_embeds: torch.Tensor, image_index: torch.Tensor | None) -> torch.Tensor:
        """`image_embeds` as they are where cross-attention can fold captions, else one row a caption."""
        if image_index is None:
            return image_embeds
        foldable = isinstance(self.text_decoder.bert.encoder.layer[0].crossattention.self, SdpaTextAttention)
        counts = torch.bincount(image_index, minlength=len(image_embeds))
        if foldable and bool((counts == counts[0]).all()):
            return image_embeds
        return image_embeds[image_index]

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save weights and configuration; the configuration names the stock class, which everybody has."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.config.architectures = [BlipForConditionalGeneration.__name__]
            self.config.save_pretrained(save_directory)


def resize_position_embeddings(model: BlipForConditionalGeneration, image_size: int) -> None:
    """Interpolate the image encoder's position embeddings, in place, to pictures of `image_size` pixels a side.

    As in the original repository (`models/vit.py`, `interpolate_pos_embed`): bicubic, the class position untouched.

    Raises:
        RecipeError: `image_size` is no multiple of the patches.
    """
    vision = model.vision_model
    embeddings, config = vision.embeddings, cast("Any", vision.config)
    if image_size % config.patch_size:
        raise RecipeError(
            f"image_size is {image_size}: expected a multiple of the patches of {config.patch_size} pixels."
        )
    old, new = config.image_size // config.patch_size, image_size // config.patch_size
    if old != new:
        positions = embeddings.position_embedding.data
        grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)
        embeddings.position_embedding = nn.Parameter(torch.cat([positions[:, :1], grid], dim=1))
        embeddings.num_patches, embeddings.num_positions = new * new, new * new + 1
    for part in (embeddings, config, model.config.vision_config):
        part.image_size = image_size


@torch.no_grad()
def generate_token_ids(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pixel_values: torch.Tensor,
    prompt: str,
    **generate_kwargs: Any,
) -> torch.Tensor:
    """Token ids `(images, tokens)` that follow `prompt`, from pixels and prompt alone.

    The prompt goes in with its `[SEP]`, which BLIP's `generate` drops. Everything about decoding is passed: BLIP takes
    its defaults from the text decoder's own generation configuration, not from the one saved beside the model.
    """
    prompt_ids = tokenizer(prompt, return_tensors="pt").input_ids.to(pixel_values.device)
    input_ids = prompt_ids.repeat(len(pixel_values), 1)
    generated = model.generate(pixel_values=pixel_values, input_ids=input_ids, **generate_kwargs)
    return generated[:, input_ids.shape[1] - 1 :]


def generate_captions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pixel_values: torch.Tensor,
    *,
    prompt: str = "",
    **generate_kwargs: Any,
) -> list[str]:
    """Captions without the prompt, one per generated sequence, for `pixel_values` `(images, 3, height, width)`.

    Lengths in `generate_kwargs` count the prompt, as in BLIP's own configuration.
    """
    return decode_captions(tokenizer, generate_token_ids(model, tokenizer, pixel_values, prompt, **generate_kwargs))


def decode_captions(tokenizer: PreTrainedTokenizerBase, token_ids: torch.Tensor) -> list[str]:
    """Text of each row of `token_ids` `(captions, tokens)`, special tokens left out."""
    return [caption.strip() for caption in tokenizer.batch_decode(token_ids, skip_special_tokens=True)]
