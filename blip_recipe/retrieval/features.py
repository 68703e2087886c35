"""Compute features of pictures and texts, alone and together, as the stock class computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.images import open_image
from blip_recipe.errors import RecipeError
from blip_recipe.models.adapters import is_adapted
from blip_recipe.models.attention import EAGER_CLASSES
from blip_recipe.models.loading import KINDS, load_finished
from blip_recipe.models.matching import tokenize_texts
from blip_recipe.models.pipeline import first_device, usable_device
from blip_recipe.models.vision import encode_images
from blip_recipe.retrieval.modeling import BlipForRetrieval

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from transformers import BlipProcessor

    from blip_recipe.data.images import Picture
    from blip_recipe.models.stock import StockModel

BATCH_SIZE = 16
"""Default number of pictures or texts that are encoded at once."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Features of pictures, texts, or pairs of both.

    Attributes:
        states: `(items, tokens, width)`, the last states of all tokens: `[CLS]` and the patches of a picture, or the
            tokens of a text (which begins with `[CLS]`; in a pair with `[ENC]`).
        embeds: One vector for each item. Pictures and texts: the unit-length ITC projection of the first token,
            `(items, image_text_hidden_size)`; their inner products are cosines. None for pictures of a model without
            ITC. Pairs: the state of `[ENC]`, `(items, width)`, from which ITM decides.
        attention_mask: `(items, tokens)`, 0 on the padding of texts; None for pictures.
    """

    states: torch.Tensor
    embeds: torch.Tensor | None
    attention_mask: torch.Tensor | None = None


class BlipFeatures:
    """Computes features with a finished model.

    Texts are cleaned and cut as for `blip-recipe match` (lower case, 30 words, 35 tokens). Values equal those of the
    stock class for the same batch bit by bit, because attention is eager. They stay on the model's device.

    Args:
        model: A BLIP in evaluation mode, or a `PeftModel` of one.
        processor: Its processor.
    """

    def __init__(self, model: Any, processor: BlipProcessor) -> None:
        self.model: Any = (model.get_base_model() if is_adapted(model) else model).eval()
        self.processor = processor
        for module in self.model.modules():
            module.__class__ = EAGER_CLASSES.get(type(module), type(module))

    @classmethod
    def load(cls, name: str, model_class: type[StockModel], *, device: Any = None, **options: Any) -> Self:
        """Load a directory or Hub id, full or adapter, to `device` (default: the first accelerator, else the CPU).

        Raises:
            RecipeError: The model cannot be loaded, or is not of `model_class`.
        """
        device = usable_device(device or first_device())
        model, processor, _ = load_finished(name, model_class, device=device, **options)
        return cls(model, processor)

    @torch.no_grad()
    def image(self, images: Picture | Sequence[Picture], batch_size: int = BATCH_SIZE) -> Encoded:
        """Encode pictures with the image encoder.

        Args:
            images: Paths, URLs, `PIL.Image`s, arrays or encoded files; one or several.
            batch_size: Pictures that are encoded at once.

        Returns:
            `states` `(images, patches + 1, width)` and, for a matcher, `embeds` `(images, image_text_hidden_size)`.

        Raises:
            RecipeError: There are no pictures, or one cannot be read.
        """
        states = self._encode_images(_listed(images), batch_size)
        if not isinstance(self.model, BlipForRetrieval):
            return Encoded(states, None)
        return Encoded(states, self.model.image_features(states))

    @torch.no_grad()
    def text(self, texts: str | Sequence[str], batch_size: int = BATCH_SIZE) -> Encoded:
        """Encode texts with the text encoder, which sees no picture.

        Args:
            texts: One text or several.
            batch_size: Texts that are encoded at once.

        Returns:
            `states` `(texts, tokens, width)`, `embeds` `(texts, image_text_hidden_size)` and `attention_mask`
            `(texts, tokens)`.

        Raises:
            RecipeError: The model is not a matcher, or there are no texts.
        """
        ids, mask = self._tokenize(texts)
        parts = zip(ids.split(batch_size), mask.split(batch_size), strict=True)
        states = torch.cat([self.model.text_encoder(*part).last_hidden_state for part in parts])
        embeds = torch.nn.functional.normalize(self.model.text_proj(states[:, 0]), dim=-1)
        return Encoded(states, embeds, mask)

    @torch.no_grad()
    def multimodal(
        self, images: Picture | Sequence[Picture], texts: str | Sequence[str], batch_size: int = BATCH_SIZE
    ) -> Encoded:
        """Encode pairs of a picture and a text with the image-grounded encoder.

        Args:
            images: Paths, URLs, `PIL.Image`s, arrays or encoded files; one or several.
            texts: As many texts, the n-th for the n-th picture.
            batch_size: Pairs that are encoded at once.

        Returns:
            `states` `(pairs, tokens, width)`, `embeds` `(pairs, width)` and `attention_mask` `(pairs, tokens)`.

        Raises:
            RecipeError: The model is not a matcher, the numbers differ, or a picture cannot be read.
        """
        ids, mask = self._tokenize(texts)
        pictures = _listed(images)
        if len(pictures) != len(ids):
            raise RecipeError(
                f"There are {len(pictures)} pictures and {len(ids)} texts: expected a text for each picture."
            )
        ids = torch.cat([torch.full_like(ids[:, :1], self.model.enc_token_id), ids[:, 1:]], dim=1)
        states = torch.cat(
            [
                self.model.text_encoder(
                    ids[start : start + batch_size],
                    mask[start : start + batch_size],
                    encoder_hidden_states=self._encode_images(pictures[start : start + batch_size], batch_size),
                ).last_hidden_state
                for start in range(0, len(pictures), batch_size)
            ]
        )
        return Encoded(states, states[:, 0], mask)

    def _encode_images(self, pictures: Sequence[Picture], batch_size: int) -> torch.Tensor:
        """Encode pictures to `(images, patches + 1, width)`."""
        if not pictures:
            raise RecipeError("There are no pictures: expected at least one.")
        found = []
        for start in range(0, len(pictures), batch_size):
            opened = [open_image(picture) for picture in pictures[start : start + batch_size]]
            pixels = self.processor.image_processor(opened, return_tensors="pt").pixel_values
            pixels = pixels.to(self.model.device, self.model.dtype)
            found.append(encode_images(self.model.vision_model, pixels))
        return torch.cat(found)

    def _tokenize(self, texts: str | Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `attention_mask`, each `(texts, tokens)`, on the model's device."""
        if not isinstance(self.model, BlipForRetrieval):
            stock, example = self.model.stock_class.__name__, KINDS[BlipForRetrieval.stock_class.__name__][1]
            raise RecipeError(
                f"The model is a {KINDS[stock][0]} ({stock}), which gives features of images only: features of texts "
                f"need a retrieval model, such as {example}."
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise RecipeError("There are no texts: expected at least one.")
        tokens = tokenize_texts(self.processor.tokenizer, texts)
        return tokens["input_ids"].to(self.model.device), tokens["attention_mask"].to(self.model.device)


def _listed(images: Picture | Sequence[Picture]) -> list[Any]:
    """One picture or several as a list; bytes and arrays are one picture."""
    return list(images) if isinstance(images, (list, tuple)) else [images]
