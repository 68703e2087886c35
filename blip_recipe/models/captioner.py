"""The captioning side of BLIP: token losses and generation, with each image encoded once for all its captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import ModelOutput
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from blip_recipe.data.images import open_image
from blip_recipe.data.rows import PROMPT
from blip_recipe.models.attention import CACHE_ARGUMENT, EAGER_CLASSES
from blip_recipe.models.generation import LeavingDecoder, SharedImageCache
from blip_recipe.models.stock import StockModel
from blip_recipe.models.text import IGNORED, decode_texts, packed_mask, token_losses
from blip_recipe.models.vision import encode_images

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import BlipProcessor, PreTrainedTokenizerBase

    from blip_recipe.models.decoding import DecodingSettings


USUAL_DECODING = {
    *("do_sample", "num_beams", "num_return_sequences", "logits_processor", "temperature", "top_k", "top_p"),
    *("max_length", "min_length", "max_new_tokens", "min_new_tokens"),
    *("repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping"),
}
"""Arguments of `generate` with which images may leave: others may need another loop, or all texts at each token."""


@dataclass
class CaptioningOutput(ModelOutput):
    """The output of a captioner.

    Attributes:
        token_losses: `(images, tokens - 1)` in float32: the cross entropy of each next token, 0 where it is not
            predicted. Returned with `labels`.
        logits: `(images, tokens, vocabulary)`. Returned without `labels`.
        image_embeds: `(images, patches, width)`.
        attentions: `(images, heads, patches, patches)` for each layer of the image encoder, with `output_attentions`.
        cross_attentions: `(images, heads, tokens, patches)` for each layer of the text decoder, with
            `output_attentions`.
    """

    token_losses: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class CaptioningModel(StockModel):
    """A model with the parts of `BlipForConditionalGeneration`, for several captions per image in one row.

    The image encoder and the keys and values of cross-attention are computed once per image, not once per caption. The
    positions of each caption start at 0, and a caption attends only to itself.
    """

    vision_model: BlipVisionModel
    text_decoder: BlipTextLMHeadModel

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
        """Predict each caption token from its image and the tokens before it.

        Args:
            pixel_values: `(images, 3, height, width)`.
            input_ids: `(images, tokens)`, the captions of an image end to end.
            attention_mask: `(images, tokens)`, 0 on padding. Only for rows of one caption, without `position_ids`.
            position_ids: `(images, tokens)`, starting at 0 in each caption; padding is 0.
            labels: `(images, tokens)`, not shifted; `-100` is not predicted. With labels, losses are returned instead
                of logits, and logits are computed for predicted tokens only.
            image_embeds: `(images, patches, width)`, instead of `pixel_values`.
            label_smoothing: Label smoothing (BLIP: 0.1).
            output_attentions: Whether to return attention maps, which switches to eager attention.
            kwargs: Ignored. Because `forward` accepts them, Trainer counts the tokens of all accumulated batches.
        """
        if output_attentions and self.uses_sdpa:
            self._switch_attention(EAGER_CLASSES)
            try:
                return self.forward(
                    pixel_values, input_ids, attention_mask, position_ids, labels, image_embeds, label_smoothing, True
                )
            finally:
                self.use_sdpa()
        # Done first because it synchronises with the device, which is still idle here.
        predicted = None if labels is None else (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        vision = None
        if image_embeds is None and output_attentions:
            vision = self.vision_model(pixel_values=pixel_values, output_attentions=True)
            image_embeds = vision.last_hidden_state
        elif image_embeds is None:
            image_embeds = encode_images(self.vision_model, pixel_values)
        if position_ids is not None:
            attention_mask = packed_mask(position_ids, self.text_decoder.dtype)
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
        """Like the stock class, from `pixel_values` or from `image_embeds` `(images, patches, width)`.

        With `use_sdpa`, the keys and values of an image are computed once for all its beams and samples.
        """
        if image_embeds is None:
            image_embeds = encode_images(
                self.vision_model, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding
            )
        text_config = cast("Any", self.config.text_config)
        if input_ids is None:
            input_ids = torch.tensor([[text_config.bos_token_id, text_config.sep_token_id]], device=image_embeds.device)
            input_ids = input_ids.repeat(len(image_embeds), 1)
        prompt = input_ids[:, :-1].clone()
        prompt[:, 0] = text_config.bos_token_id
        if self.uses_sdpa:
            cache = self._image_cache(image_embeds)
            # On a GPU a step takes as long for fewer texts.
            on_cpu = image_embeds.device.type == "cpu"
            if on_cpu and len(prompt) == len(image_embeds) and generate_kwargs.keys() <= USUAL_DECODING:
                leaving = LeavingDecoder(self.text_decoder, cache, image_embeds, text_config.sep_token_id)
                generate_kwargs["custom_generate"] = leaving.run_loop
            generate_kwargs[CACHE_ARGUMENT] = cache
            # One patch is enough to enable cross-attention: its keys and values are in the cache.
            image_embeds = image_embeds[:, :1]
        return cast("Any", self.text_decoder).generate(
            input_ids=prompt,
            attention_mask=None if attention_mask is None else attention_mask[:, :-1],
            encoder_hidden_states=image_embeds,
            eos_token_id=text_config.sep_token_id,
            pad_token_id=text_config.pad_token_id,
            # A sharded model was gathered before (`sharding.gather_weights`), so no process waits for another.
            synced_gpus=False,
            **generate_kwargs,
        )

    def _image_cache(self, image_embeds: torch.Tensor) -> SharedImageCache:
        """The cache of a generation.

        On a CPU in float32, keys and values are left out. To compute them takes 15% of the time of the image encoder,
        and each token reads all of them: 42 MB for a picture (base size). The embeddings are 2 MB.
        """
        layers = [layer.crossattention.self for layer in cast("Any", self.text_decoder.bert.encoder.layer)]
        if image_embeds.device.type == "cpu" and not self.training and all(each.has_plain_weights for each in layers):
            cache = SharedImageCache(DynamicCache(), DynamicCache())
            cache.image_embeds = image_embeds
            return cache
        keys_and_values = DynamicCache()
        for number, layer in enumerate(layers):
            keys_and_values.update(*layer.project(image_embeds), number)
        return SharedImageCache(DynamicCache(), keys_and_values)


class ForcedStart(LogitsProcessor):
    """Begin each text with given tokens, after one start token.

    Args:
        token_ids: `(tokens,)`.
    """

    def __init__(self, token_ids: torch.Tensor) -> None:
        self.token_ids = token_ids

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Set the log-probabilities `scores` `(rows, vocabulary)` to 0 for the given token, else to minus infinity."""
        place = input_ids.shape[1] - 1
        if place >= len(self.token_ids):
            return scores
        return torch.full_like(scores, -torch.inf).index_fill(1, self.token_ids[place], 0.0)  # type: ignore[return-value]


def force_start(token_ids: torch.Tensor, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` for texts that begin with `token_ids` `(tokens,)`, which new tokens do not count."""
    own = generate_kwargs.get("logits_processor") or []
    counts = {name: generate_kwargs.get(name) for name in ("max_new_tokens", "min_new_tokens")}
    return {
        **generate_kwargs,
        **{name: count + len(token_ids) for name, count in counts.items() if count is not None},
        "logits_processor": LogitsProcessorList([*own, ForcedStart(token_ids)]),
    }


@torch.no_grad()
def generate_token_ids(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    images: torch.Tensor,
    prompt: str,
    *,
    length_penalty_counts_prompt: bool = False,
    **generate_kwargs: Any,
) -> torch.Tensor:
    """Generate the token ids `(images, tokens)` that follow `prompt`.

    The prompt is passed with its `[SEP]`, which BLIP's `generate` drops. All decoding arguments must be passed: BLIP
    takes its defaults from the text decoder's generation configuration, not from the one saved with the model.

    Args:
        model: A captioner, ours or of the stock class.
        tokenizer: Its tokenizer.
        images: `pixel_values` `(images, 3, height, width)` or, for `BlipForCaptioning`, `image_embeds`
            `(images, patches, width)`.
        prompt: The text that every caption starts with.
        length_penalty_counts_prompt: Whether beam search divides scores by the whole length, as transformers 4.15 did,
            with which the original ran.
        generate_kwargs: Other arguments of `generate`.
    """
    prompt_ids = tokenizer(prompt, return_tensors="pt").input_ids.to(images.device)
    start = prompt_ids
    if length_penalty_counts_prompt and prompt_ids.shape[1] > 2:
        # `generate` divides by the tokens that it generates, so it generates the prompt too.
        start = prompt_ids[:, [0, -1]]
        generate_kwargs = force_start(prompt_ids[0, 1:-1], generate_kwargs)
    kind = "pixel_values" if images.ndim == 4 else "image_embeds"
    generated = model.generate(**{kind: images}, input_ids=start.repeat(len(images), 1), **generate_kwargs)
    return generated[:, prompt_ids.shape[1] - 1 :]


def generate_captions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pixel_values: torch.Tensor,
    *,
    prompt: str = "",
    **generate_kwargs: Any,
) -> list[str]:
    """Generate captions, without the prompt, for `pixel_values` `(images, 3, height, width)`.

    Lengths in `generate_kwargs` include the prompt, as in BLIP's own configuration.
    """
    return decode_texts(tokenizer, generate_token_ids(model, tokenizer, pixel_values, prompt, **generate_kwargs))


def caption_row(model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: DecodingSettings) -> str:
    """Caption the picture of a row with the prompt and decoding that the model was scored with."""
    pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
    return generate_captions(
        model,
        processor.tokenizer,
        pixel_values.to(model.device),
        prompt=row.get(PROMPT, settings.prompt),
        **settings.generate_kwargs(),
    )[0]
