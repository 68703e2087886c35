"""The graphs of a model: modules whose inputs and outputs are plain tensors, which `torch.onnx.export` can trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import DynamicCache

from blip_recipe.models.attention import CACHE_ARGUMENT
from blip_recipe.models.generation import SharedImageCache
from blip_recipe.runtime.decoder import CROSS, IMAGE, PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blip_recipe.models.captioner import CaptioningModel
    from blip_recipe.models.image_text import ImageTextModel
    from blip_recipe.vqa.modeling import BlipForAnswering

Axes = dict[int, str]
"""Names of the dynamic axes of a tensor."""

ENCODED: Axes = {0: "images"}
TOKENS: Axes = {0: "images", 1: "beams", 2: "tokens"}
CACHED: Axes = {0: "images", 1: "beams", 3: "past"}
TEXTS: Axes = {0: "images", 1: "texts", 2: "tokens"}

EXAMPLE = {"images": 2, "beams": 3, "texts": 3, "tokens": 4, "past": 5, "question_tokens": 6, "past_patches": 2}
"""Lengths of the dynamic axes in examples: above 1, which the exporter takes as fixed. A tiny model has 5 patches, so 3
of them are new in the example of the browser's decoder."""


@dataclass(frozen=True)
class Graph:
    """A module with examples of its inputs.

    Attributes:
        module: The module, which takes the inputs in their order and returns a tuple.
        inputs: Examples of the inputs by name.
        axes: The dynamic axes of each input.
        outputs: Names of the outputs.
    """

    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    axes: Mapping[str, Axes]
    outputs: Sequence[str]


def captioner_graphs(model: CaptioningModel) -> dict[str, Graph]:
    """The graphs of a captioner: `image_encoder` and `text_decoder`."""
    text = model.text_decoder.bert
    return {
        "image_encoder": _image_encoder(model.vision_model, CrossProjection(text), state_names(CROSS, text)),
        "text_decoder": _text_decoder(model.text_decoder, _patches(model), None),
    }


def answerer_graphs(model: BlipForAnswering) -> dict[str, Graph]:
    """The graphs of a question answerer: `image_encoder`, `question_encoder` and `text_decoder`."""
    text, decoder = model.text_encoder, model.text_decoder
    question = PairEncoder(text, CrossProjection(decoder.bert))
    return {
        "image_encoder": _image_encoder(model.vision_model, CrossProjection(text), state_names(CROSS, text)),
        "question_encoder": _pair_encoder(question, _patches(model), state_names(CROSS, decoder.bert)),
        "text_decoder": _text_decoder(decoder, EXAMPLE["question_tokens"], {1: "question_tokens"}),
    }


def matcher_graphs(model: ImageTextModel) -> dict[str, Graph]:
    """The graphs of a matcher: `image_encoder`, `text_encoder` for ITC, and `pair_encoder` for ITM."""
    text = model.text_encoder
    ids = torch.ones(EXAMPLE["texts"], EXAMPLE["tokens"], dtype=torch.long)
    axes = {0: "texts", 1: "tokens"}
    image = _image_encoder(model.vision_model, FeaturesAndStates(model), ["image_features", *state_names(CROSS, text)])
    return {
        "image_encoder": image,
        "text_encoder": Graph(
            TextFeatures(model),
            {"input_ids": ids, "attention_mask": ids.clone()},
            {"input_ids": axes, "attention_mask": axes},
            ["text_features"],
        ),
        "pair_encoder": _pair_encoder(
            PairEncoder(text, FirstState(model.itm_head), model.enc_token_id), _patches(model), ["match_logits"]
        ),
    }


def state_names(prefix: str, text: Any) -> list[str]:
    """The names of the keys and values of each layer of a text model."""
    return [f"{prefix}{layer}_{kind}" for layer in range(len(text.encoder.layer)) for kind in ("key", "value")]


def _patches(model: Any) -> int:
    return model.vision_model.embeddings.num_positions


def _image_encoder(vision_model: Any, head: nn.Module, outputs: Sequence[str]) -> Graph:
    size = vision_model.config.image_size
    pixels = torch.zeros(EXAMPLE["images"], 3, size, size, dtype=vision_model.dtype)
    module = ImageEncoder(vision_model, head)
    return Graph(module, {"pixel_values": pixels}, {"pixel_values": ENCODED}, outputs)


def _pair_encoder(module: PairEncoder, patches: int, outputs: Sequence[str]) -> Graph:
    ids = torch.ones([EXAMPLE[axis] for axis in TEXTS.values()], dtype=torch.long)
    states = _example_states(module.text, IMAGE, (EXAMPLE["images"],), patches)
    axes = {"input_ids": TEXTS, "attention_mask": TEXTS} | dict.fromkeys(states, ENCODED)
    return Graph(module, {"input_ids": ids, "attention_mask": ids.clone()} | states, axes, outputs)


def _text_decoder(decoder: Any, states: int, state_axes: Axes | None) -> Graph:
    """The decoder; `state_axes` are further dynamic axes of the mask, where the encoded texts have one."""
    text = decoder.bert
    images, beams = EXAMPLE["images"], EXAMPLE["beams"]
    ids = torch.ones([EXAMPLE[axis] for axis in TOKENS.values()], dtype=torch.long)
    mask = {} if state_axes is None else {"question_mask": torch.ones(images, states, dtype=torch.long)}
    cross = _example_states(text, CROSS, (images,), states)
    past = _example_states(text, PAST, (images, beams), EXAMPLE["past"])
    cross_axes = ENCODED if state_axes is None else ENCODED | {axis + 1: name for axis, name in state_axes.items()}
    axes = {"input_ids": TOKENS, **dict.fromkeys(mask, ENCODED | (state_axes or {}))}
    axes |= dict.fromkeys(cross, cross_axes) | dict.fromkeys(past, CACHED)
    module = TextDecoder(decoder, masked=bool(mask))
    return Graph(module, {"input_ids": ids, **mask, **cross, **past}, axes, ["logits", *state_names(PRESENT, text)])


def _example_states(text: Any, prefix: str, rows: tuple[int, ...], length: int) -> dict[str, torch.Tensor]:
    """Examples of keys and values `(*rows, heads, length, head width)` of each layer."""
    heads = text.config.num_attention_heads
    shape = (*rows, heads, length, text.config.hidden_size // heads)
    return {name: torch.zeros(shape, dtype=text.dtype) for name in state_names(prefix, text)}


class CrossProjection(nn.Module):
    """Projects the states of an encoder to the keys and values of all cross-attention layers of a decoder."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.crossattention.self for layer in text.encoder.layer)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map `(images, patches, width)` to keys and values `(images, heads, patches, head width)` of each layer."""
        return tuple(each for layer in self.layers for each in cast("Any", layer).project(states))


class ImageEncoder(nn.Module):
    """The image encoder, followed by `head`, which maps its states to the outputs."""

    def __init__(self, vision_model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.vision_model, self.head = vision_model, head

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map pixels `(images, 3, height, width)` to the outputs of the head."""
        return self.head(self.vision_model(pixel_values=pixel_values).last_hidden_state)


class FeaturesAndStates(nn.Module):
    """The head of an image encoder for matching: features of ITC, then keys and values of cross-attention."""

    def __init__(self, model: ImageTextModel) -> None:
        super().__init__()
        self.model, self.project = [model], CrossProjection(model.text_encoder)  # in a list: not a part of this module

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map `(images, patches, width)` to features `(images, feature width)`, keys and values."""
        return self.model[0].image_features(states), *self.project(states)


class FirstState(nn.Module):
    """A linear layer for the state of the first token."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor]:
        """Map `(texts, tokens, width)` to `(texts, outputs)`."""
        return (self.linear(states[:, 0]),)


class TextFeatures(nn.Module):
    """The text encoder of ITC."""

    def __init__(self, model: ImageTextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        """Map tokens and mask `(texts, tokens)` to features `(texts, feature width)`."""
        mask = _key_mask(attention_mask, input_ids.shape[1], self.model.dtype)
        return (self.model.text_features(input_ids, mask),)


class PairEncoder(nn.Module):
    """The image-grounded text encoder, followed by `head`, which maps its states to the outputs."""

    def __init__(self, text: Any, head: nn.Module, start: int | None = None) -> None:
        super().__init__()
        self.text, self.head, self.start = text, head, start

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *cross: torch.Tensor) -> Any:
        """Encode texts with their pictures.

        Args:
            input_ids: `(images, texts, tokens)`. With `start`, it takes the place of the first token.
            attention_mask: Of the same shape, 0 on padding.
            cross: Keys and values `(images, heads, patches, head width)` of each layer.

        Returns:
            The outputs of the head, with a row for each text; logits `(images, texts, classes)`.
        """
        images, texts, _ = input_ids.shape
        ids = input_ids.flatten(0, 1)
        if self.start is not None:
            ids = torch.cat([torch.full_like(ids[:, :1], self.start), ids[:, 1:]], dim=1)
        states = self.text(
            input_ids=ids,
            attention_mask=_key_mask(attention_mask.flatten(0, 1), ids.shape[1], self.text.dtype),
            encoder_hidden_states=cross[0][:, 0],  # not read: keys and values are in the cache
            **{CACHE_ARGUMENT: _filled_cache(cross, [])},
        ).last_hidden_state
        outputs = self.head(states)
        return (outputs[0].unflatten(0, (images, texts)),) if len(outputs) == 1 else outputs


class TextDecoder(nn.Module):
    """The decoder with a cache, for a prompt (with an empty cache) or for one more token of each beam."""

    def __init__(self, decoder: Any, *, masked: bool) -> None:
        super().__init__()
        self.decoder, self.masked = decoder, masked
        self.layers = len(decoder.bert.encoder.layer)

    def forward(self, input_ids: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predict the next token of each position.

        Args:
            input_ids: `(images, beams, tokens)`.
            states: With `masked`, the mask of the encoder's states `(images, patches)`, 0 on padding; then keys and
                values of each layer: of cross-attention `(images, heads, patches, head width)`, and of the tokens
                before `(images, beams, heads, past, head width)`.

        Returns:
            Logits `(images, beams, tokens, vocabulary)`, and keys and values `(images, beams, heads, past + tokens,
            head width)` of each layer.
        """
        mask, states = (states[0], states[1:]) if self.masked else (None, states)
        cross, past = states[: 2 * self.layers], states[2 * self.layers :]
        images, beams, tokens = input_ids.shape
        if mask is not None:
            mask = _key_mask(mask, beams * tokens, self.decoder.dtype)
        logits, present = _decode(
            self.decoder, input_ids.flatten(0, 1), cross, [each.flatten(0, 1) for each in past], mask
        )
        return logits.unflatten(0, (images, beams)), *(each.unflatten(0, (images, beams)) for each in present)


class BrowserDecoder(nn.Module):
    """The decoder as transformers.js runs it: the cache has the keys and values of cross-attention too.

    The cache is empty at first. Then the patches that it lacks, which are all of them, are projected; later, none.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder, self.project = decoder, CrossProjection(decoder.bert)

    def forward(
        self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, *cache: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Predict the next token of each position.

        Args:
            input_ids: `(batch, tokens)`.
            encoder_hidden_states: `(batch, patches, width)`.
            cache: For each layer keys and values of the tokens before, then those of the patches, each
                `(batch, heads, positions, head width)`.

        Returns:
            Logits `(batch, tokens, vocabulary)`, and the cache.
        """
        layers = range(0, len(cache), 4)
        past = [each for layer in layers for each in cache[layer : layer + 2]]
        known = [each for layer in layers for each in cache[layer + 2 : layer + 4]]
        new = self.project(encoder_hidden_states[:, known[0].shape[2] :])
        cross = [torch.cat(pair, dim=2) for pair in zip(known, new, strict=True)]
        logits, present = _decode(self.decoder, input_ids, cross, past, None)
        numbers = range(0, len(present), 2)
        return logits, *(each for at in numbers for each in (*present[at : at + 2], *cross[at : at + 2]))


def browser_graphs(model: CaptioningModel) -> dict[str, Graph]:
    """The graphs of a captioner as transformers.js names them: `encoder_model` and `decoder_model_merged`."""
    text, heads = model.text_decoder.bert, model.config.text_config.num_attention_heads
    encoder = _image_encoder(model.vision_model, Alone(), ["last_hidden_state"])
    batch, patches, width = EXAMPLE["images"], _patches(model), model.config.text_config.hidden_size
    past: dict[str, torch.Tensor] = {}
    axes: dict[str, Axes] = {"input_ids": {0: "batch_size", 1: "tokens"}, "encoder_hidden_states": {0: "batch_size"}}
    for name in cache_names("past_key_values", text):
        of_text = ".decoder." in name
        length = EXAMPLE["past" if of_text else "past_patches"]
        past[name] = torch.zeros(batch, heads, length, width // heads)
        axes[name] = {0: "batch_size", 2: "past" if of_text else "past_patches"}
    inputs = {
        "input_ids": torch.ones(batch, EXAMPLE["tokens"], dtype=torch.long),
        "encoder_hidden_states": torch.zeros(batch, patches, model.config.vision_config.hidden_size),
    }
    outputs = ["logits", *cache_names("present", text)]
    return {
        "encoder_model": Graph(encoder.module, encoder.inputs, {"pixel_values": {0: "batch_size"}}, encoder.outputs),
        "decoder_model_merged": Graph(BrowserDecoder(model.text_decoder), inputs | past, axes, outputs),
    }


def cache_names(prefix: str, text: Any) -> list[str]:
    """The names of the parts of transformers.js' cache."""
    return [
        f"{prefix}.{layer}.{part}.{kind}"
        for layer in range(len(text.encoder.layer))
        for part in ("decoder", "encoder")
        for kind in ("key", "value")
    ]


class Alone(nn.Module):
    """The head of an image encoder whose states are the output."""

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the states."""
        return (states,)


def _decode(
    decoder: Any,
    input_ids: torch.Tensor,
    cross: Sequence[torch.Tensor],
    past: Sequence[torch.Tensor],
    encoder_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of tokens `(rows, tokens)`, and the keys and values of all tokens so far."""
    tokens, before = input_ids.shape[1], past[0].shape[2]
    cache = _filled_cache(cross, past)
    positions = torch.arange(tokens, device=input_ids.device) + before
    seen = torch.arange(before + tokens, device=input_ids.device)[None] <= positions[:, None]
    hidden = decoder.bert(
        input_ids=input_ids,
        position_ids=positions[None],
        attention_mask=_additive(seen, decoder.dtype)[None, None],
        encoder_hidden_states=cross[0][:, 0],  # not read: keys and values are in the cache
        encoder_attention_mask=encoder_mask,
        is_decoder=True,
        use_cache=True,
        **{CACHE_ARGUMENT: cache},
    ).last_hidden_state
    layers: Any = cache.self_attention_cache.layers
    return decoder.cls(hidden).float(), [each for layer in layers for each in (layer.keys, layer.values)]


def _filled_cache(cross: Sequence[torch.Tensor], past: Sequence[torch.Tensor]) -> SharedImageCache:
    """A cache with these keys and values of each layer."""
    caches = []
    for states in (past, cross):
        cache = DynamicCache()
        for number in range(len(states) // 2):
            cache.update(states[2 * number], states[2 * number + 1], number)
        caches.append(cache)
    return SharedImageCache(*caches)


def _key_mask(seen: torch.Tensor, queries: int, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask `(rows, 1, queries, keys)` of `seen` `(rows, keys)`; ONNX's `Attention` repeats no queries."""
    return _additive(seen, dtype)[:, None, None].expand(-1, 1, queries, -1)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask that is added to attention scores: 0 where a position is seen, else the lowest number."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(seen == 0, torch.finfo(dtype).min)
