"""Grad-CAM of cross-attention: the parts of a picture on which the score of a word rests.

Source: the visualisation notebook of ALBEF (arXiv 2107.07651, section 6 and appendix), whose method BLIP's authors use
in LAVIS: the gradient of a score with respect to a cross-attention map, clamped at 0, times the map, averaged over the
heads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from blip_recipe.data.images import Picture, open_image
from blip_recipe.errors import RecipeError
from blip_recipe.models.adapters import is_adapted
from blip_recipe.models.attention import EAGER_CLASSES
from blip_recipe.models.heatmaps import Explanation
from blip_recipe.models.loading import load_finished
from blip_recipe.models.pipeline import first_device, usable_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from PIL.Image import Image
    from torch import nn
    from transformers import BlipProcessor

    from blip_recipe.models.decoding import DecodingSettings
    from blip_recipe.models.stock import StockModel

Over = Literal["question", "answer"]

LAYER_SHARE = 2 / 3
"""The share of a text model's layers below the explained one: layer 8 of 12, as in the notebook of ALBEF."""


@dataclass(frozen=True)
class Words:
    """The words of a tokenised text.

    Attributes:
        texts: The words as written, punctuation included.
        tokens: The indices of each word's tokens in the text's token ids.
    """

    texts: list[str]
    tokens: list[list[int]]


def find_words(encoding: Any, text: str) -> Words:
    """The words of `text` and their tokens, from the encoding that the tokenizer gives for it.

    Raises:
        RecipeError: There are none.
    """
    tokens: dict[int, list[int]] = {}
    for token, word in enumerate(encoding.word_ids(0)):
        if word is not None:
            tokens.setdefault(word, []).append(token)
    if not tokens:
        raise RecipeError(f"The text is {text!r}, which has no words: expected a caption, a question or a text.")
    spans = [encoding.word_to_chars(0, word) for word in tokens]
    return Words([text[span.start : span.end] for span in spans], list(tokens.values()))


@contextmanager
def _record_map(attention: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Record the maps of a cross-attention `(rows, heads, tokens, patches + 1)`, which can be differentiated.

    The fused attention has no maps, so the layer computes the plain one meanwhile. A model whose weights are frozen has
    no gradients, so they start at the queries of this layer.
    """
    maps: list[torch.Tensor] = []
    own_class = attention.__class__

    def start_gradients(
        _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0].detach().requires_grad_()
        return (states, *args[1:]), kwargs

    hooks = [
        attention.register_forward_pre_hook(start_gradients, with_kwargs=True),
        attention.register_forward_hook(lambda _, __, output: maps.append(output[1])),
    ]
    attention.__class__ = EAGER_CLASSES.get(own_class, own_class)
    try:
        yield maps
    finally:
        attention.__class__ = own_class
        for hook in hooks:
            hook.remove()


def attention_grad_cam(attention: nn.Module, scores: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM of a cross-attention for each of several scores.

    Args:
        attention: The cross-attention (`layer.crossattention.self`) of a text model in evaluation mode.
        scores: Computes `(scores,)` with one forward pass for one picture and one text.

    Returns:
        Maps `(scores, tokens, patches)` in float32, without the class token of the picture: the mean over the heads of
        the map times its positive gradient. And the scores `(scores,)`.
    """
    with torch.enable_grad(), _record_map(attention) as maps:
        values = scores()
        (found,) = maps
        gradients = [torch.autograd.grad(value, found, retain_graph=True)[0] for value in values]
    weighted = torch.cat(gradients).float().clamp(min=0) * found.detach().float()
    return weighted.mean(1)[..., 1:], values.detach().float()


def check_texts(text: str | None, answer: str | None) -> None:
    """Check that neither text nor answer is empty.

    Raises:
        RecipeError: One is.
    """
    if text is not None and not text.strip():
        raise RecipeError("The text is empty: expected a caption, a question or a text to match.")
    if answer is not None and not answer.strip():
        raise RecipeError("The answer is empty: expected a word, or no answer to explain the generated one.")


def check_length(text: str, tokens: int, longest: int) -> None:
    """Check that no part of a text is cut.

    Raises:
        RecipeError: It has more than `longest` tokens.
    """
    if tokens > longest:
        raise RecipeError(
            f"The text has {tokens} tokens, start and end included: expected at most {longest}, for the model reads no "
            f"more. Shorten {text!r:.200}."
        )


class Explainer(ABC):
    """Explains the scores of a finished model by the parts of a picture.

    Args:
        model: The model in evaluation mode, or a `PeftModel` of one.
        processor: Its processor.
        settings: The prompt and decoding that it was scored with.

    Attributes:
        model_class: The class of its models.
        explained: The score that is explained, for messages.
    """

    model_class: ClassVar[type[StockModel]]
    explained: ClassVar[str]

    def __init__(self, model: Any, processor: BlipProcessor, settings: DecodingSettings) -> None:
        self.model: Any = (model.get_base_model() if is_adapted(model) else model).eval()
        self.processor, self.settings = processor, settings

    @classmethod
    def load(cls, name: str, *, device: Any = None, **options: Any) -> Self:
        """Load a directory or Hub id, full or adapter, to `device` (default: the first accelerator, else the CPU).

        Raises:
            RecipeError: The model cannot be loaded, or is of another kind.
        """
        device = usable_device(device or first_device())
        return cls(*load_finished(name, cls.model_class, device=device, **options))

    @torch.inference_mode(False)  # its tensors have no gradients
    def __call__(
        self,
        image: Picture,
        text: str | None = None,
        *,
        layer: int | None = None,
        answer: str | None = None,
        over: Over | None = None,
    ) -> Explanation:
        """Explain a caption, an answer or a match.

        Args:
            image: A path, URL, `PIL.Image`, array or encoded file.
            text: A captioner's caption, by default the one that it generates; an answerer's question; a matcher's text.
            layer: The layer of the text model, counted from 0; by default `default_layer`.
            answer: The answer of an answerer; by default the one that it generates.
            over: Whether an answerer's map is of each word of the `"question"` (the default) or of the `"answer"`.

        Returns:
            A map for each word.

        Raises:
            RecipeError: The picture cannot be read, a text is missing or empty, or the layer does not exist.
        """
        check_texts(text, answer)
        picture = open_image(image)
        pixels = self.processor.image_processor(picture, return_tensors="pt").pixel_values
        pixels = pixels.to(self.model.device, self.model.dtype)
        with torch.no_grad():
            embeds = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return self._explain(picture, embeds, text, layer=layer, answer=answer, over=over)

    @abstractmethod
    def _explain(
        self,
        picture: Image,
        embeds: torch.Tensor,
        text: str | None,
        *,
        layer: int | None,
        answer: str | None,
        over: Over | None,
    ) -> Explanation:
        """Explain a text for the picture that is encoded as `embeds` `(1, patches + 1, width)`."""

    @property
    def layers(self) -> Any:
        """The layers of the text model whose cross-attention reads the picture."""
        return self.model.text_encoder.encoder.layer

    @property
    def default_layer(self) -> int:
        """The layer that is explained by default: 8 of 12, and 1 of 2."""
        return math.floor(len(self.layers) * LAYER_SHARE)

    def _grad_cam(self, layer: int | None, scores: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Any, int]:
        """Grad-CAM `(scores, tokens, patches)` of a layer, the scores as an array, and the number of the layer."""
        layer = self.default_layer if layer is None else layer
        if not 0 <= layer < len(self.layers):
            raise RecipeError(f"--layer is {layer}: expected a number from 0 to {len(self.layers) - 1}.")
        maps, values = attention_grad_cam(self.layers[layer].crossattention.self, scores)
        return maps, values.cpu().numpy(), layer

    def _to_grid(self, maps: Sequence[torch.Tensor]) -> Any:
        """Maps `(patches,)` as an array `(maps, rows, columns)`."""
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        return torch.stack(list(maps)).view(len(maps), side, side).cpu().numpy()

    def _refuse(self, **options: Any) -> None:
        """Refuse options that only a question answerer has.

        Raises:
            RecipeError: One is given.
        """
        for name, value in options.items():
            if value is not None:
                raise RecipeError(
                    f"--{name} has an effect only with a question answerer, and this model is a {self.explained}: "
                    f"leave --{name} out."
                )
