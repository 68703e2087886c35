"""BLIP that encodes an image once for all its captions; same weights and names as the stock class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import ModelOutput

from blip_recipe.errors import RecipeError
from blip_recipe.models.attention import EAGER_CLASSES, StockModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of positions that are not predicted: padding and prompt."""


class SharedImageCache(EncoderDecoderCache):
    """A generation cache whose cross-attention part has one row an image, whatever the number of beams.

    Beams change places within their image, so that its keys and values stay where they are.
    """

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follow the chosen beams; the images' part is the same for all of them."""
        self.self_attention_cache.reorder_cache(beam_idx)


@dataclass
class CaptioningOutput(ModelOutput):
    """What `BlipForCaptioning` computes.

    Attributes:
        token_losses: `(images, tokens - 1)` in float32, the cross entropy of each next token, 0 where it is not
            predicted; with `labels`.
        logits: `(images, tokens, vocabulary)`; without `labels`.
        image_embeds: `(images, patches, width)`.
        attentions: One map a layer of the image encoder, `(images, heads, patches, patches)`; when asked for.
        cross_attentions: One map a layer of the text decoder, `(images, heads, tokens, patches)`; when asked for.
    """

    token_losses: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class BlipForCaptioning(StockModel, BlipForConditionalGeneration):
    """`BlipForConditionalGeneration` for several captions an image, laid end to end in one row.

    All that is computed once a row, the image encoder and the keys and values of cross-attention, is computed once an
    image, however many captions it has. Each caption counts its positions from 0 and sees only itself.
    """

    stock_class = BlipForConditionalGeneration
    lora_layers = r"text_decoder\.bert\.encoder\..*\.(query|key|value|dense)"

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> CaptioningOutput:
        """Each caption token given its image and the tokens before it.

        Args:
            pixel_values: `(images, 3, height, width)`.
            input_ids: `(images, tokens)`, the captions of an image one after the other.
            attention_mask: `(images, tokens)`, 0 on padding, where a row is one caption and `position_ids` are left
                out.
            position_ids: `(images, tokens)`, counted anew from 0 in each caption; padding is 0.
            labels: `(images, tokens)`, not shifted; `-100` is not predicted. Asks for losses in place of logits: the
                vocabulary is then spread out over predicted tokens only.
            image_embeds: `(images, patches, width)`, in place of `pixel_values`.
            label_smoothing: Share of the target spread over the vocabulary (BLIP: 0.1).
            output_attentions: Whether attention maps are kept, for which attention is computed eagerly.
            kwargs: Not used; that they are taken tells Trainer to count the tokens of all accumulated batches.
        """
        if output_attentions and self.uses_sdpa:
            self._switch_attention(EAGER_CLASSES)
            try:
                return self.forward(
                    pixel_values, input_ids, attention_mask, position_ids, labels, image_embeds, label_smoothing, True
                )
            finally:
                self.use_sdpa()
        # First, as it waits for the device, which has nothing else to do yet.
        predicted = None if labels is None else (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        vision = None
        if image_embeds is None:
            vision = self.vision_model(pixel_values=pixel_values, output_attentions=output_attentions)
            image_embeds = vision.last_hidden_state
        if position_ids is not None:
            attention_mask = caption_mask(position_ids, self.text_decoder.dtype)
        text = self.text_decoder.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=image_embeds,
            use_cache=False,
            is_decoder=True,
            output_attentions=output_attentions,
        )
        output = CaptioningOutput(
            image_embeds=image_embeds,
            attentions=vision.attentions if vision else None,
            cross_attentions=text.cross_attentions,
        )
        if labels is None or predicted is None:
            output.logits = self.text_decoder.cls(text.last_hidden_state)
        else:
            logits = self.text_decoder.cls(text.last_hidden_state[:, :-1][predicted])
            output.token_losses = token_losses(logits, labels[:, 1:], predicted, label_smoothing)
        return output

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        image_embeds: torch.Tensor | None = None,
        **generate_kwargs: Any,
    ) -> torch.Tensor:
        """As the stock class, from `pixel_values` or from `image_embeds` `(images, patches, width)`.

        With `use_sdpa`, the keys and values of an image are computed once for all its beams and samples.
        """
        if image_embeds is None:
            image_embeds = self.vision_model(
                pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding
            ).last_hidden_state
        text_config = cast("Any", self.config.text_config)
        if input_ids is None:
            input_ids = torch.tensor([[text_config.bos_token_id, text_config.sep_token_id]], device=image_embeds.device)
            input_ids = input_ids.repeat(len(image_embeds), 1)
        prompt = input_ids[:, :-1].clone()
        prompt[:, 0] = text_config.bos_token_id
        if self.uses_sdpa:
            generate_kwargs["cache"] = self._image_cache(image_embeds)
            # Only asks for cross-attention, whose keys and values lie in the cache.
            image_embeds = image_embeds[:, :1]
        return cast("Any", self.text_decoder).generate(
            input_ids=prompt,
            attention_mask=None if attention_mask is None else attention_mask[:, :-1],
            encoder_hidden_states=image_embeds,
            eos_token_id=text_config.sep_token_id,
            pad_token_id=text_config.pad_token_id,
            # Of a sharded model (`sharding.gather_weights`) a process has all weights too: it waits for no other.
            synced_gpus=False,
            **generate_kwargs,
        )

    def _image_cache(self, image_embeds: torch.Tensor) -> SharedImageCache:
        keys_and_values = DynamicCache()
        layers = cast("Any", self.text_decoder.bert.encoder.layer)
        for number, layer in enumerate(layers):
            keys_and_values.update(*layer.crossattention.self.project(image_embeds), number)
        return SharedImageCache(DynamicCache(), keys_and_values)


def token_losses(
    logits: torch.Tensor, targets: torch.Tensor, predicted: tuple[torch.Tensor, ...], label_smoothing: float
) -> torch.Tensor:
    """Cross entropies `(images, tokens)` in float32, 0 where nothing is predicted.

    Args:
        logits: `(predicted tokens, vocabulary)`.
        targets: `(images, tokens)`.
        predicted: Rows and columns of the predicted ones among `targets`.
        label_smoothing: Share of the target spread over the vocabulary.
    """
    losses = F.cross_entropy(logits.float(), targets[predicted], reduction="none", label_smoothing=label_smoothing)
    return losses.new_zeros(targets.shape).index_put(predicted, losses)


def caption_mask(position_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask `(images, 1, tokens, tokens)`, added to scores, that lets a token see its own caption up to itself.

    A caption begins where `position_ids` `(images, tokens)` are 0; so does each padding token, which sees only itself.
    """
    caption = (position_ids == 0).cumsum(1)
    position = torch.arange(position_ids.shape[1], device=position_ids.device)
    seen = (caption[:, :, None] == caption[:, None]) & (position[:, None] >= position)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


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
    images: torch.Tensor,
    prompt: str,
    **generate_kwargs: Any,
) -> torch.Tensor:
    """Token ids `(images, tokens)` that follow `prompt`, from pixels and prompt alone.

    `images` are `pixel_values` `(images, 3, height, width)`, or, encoded already, `image_embeds`
    `(images, patches, width)`, which only `BlipForCaptioning` takes.

    The prompt goes in with its `[SEP]`, which BLIP's `generate` drops. Everything about decoding is passed: BLIP takes
    its defaults from the text decoder's own generation configuration, not from the one saved beside the model.
    """
    prompt_ids = tokenizer(prompt, return_tensors="pt").input_ids.to(images.device)
    input_ids = prompt_ids.repeat(len(images), 1)
    kind = "pixel_values" if images.ndim == 4 else "image_embeds"
    generated = model.generate(**{kind: images}, input_ids=input_ids, **generate_kwargs)
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
