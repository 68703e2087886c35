"""Score how well texts match pictures with a trained matcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import nn
from transformers import BlipForImageTextRetrieval

from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.images import Picture
from blip_recipe.models.contrastive import MATCHING
from blip_recipe.models.image_text import ImageTextModel, configured_temperature
from blip_recipe.models.loading import load_finished
from blip_recipe.models.pipeline import first_device, usable_device
from blip_recipe.models.processors import read_pixel_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from transformers import BlipConfig, BlipProcessor

MAX_TOKENS = 35
"""Maximum text length in tokens (`models/blip_retrieval.py` of the original)."""

TEXTS_AT_A_TIME = 256
"""Texts in a batch."""

Item = TypeVar("Item")


class MatchingModel(ImageTextModel, BlipForImageTextRetrieval):
    """`BlipForImageTextRetrieval` with the temperature of ITC, and the weights and weight names of the stock class."""

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


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Lists of up to `TEXTS_AT_A_TIME` items."""
    return (items[start : start + TEXTS_AT_A_TIME] for start in range(0, len(items), TEXTS_AT_A_TIME))


def tokenize_texts(
    tokenizer: Any, texts: Sequence[str], *, normalize: bool = True, max_length: int = MAX_TOKENS
) -> dict[str, torch.Tensor]:
    """Tokenise texts as the original does to `input_ids`, which start with `[CLS]`, and `attention_mask`.

    Args:
        tokenizer: BLIP's tokenizer.
        texts: The texts.
        normalize: Whether to clean the texts as the original does (`normalize_caption`: lower case, 30 words).
        max_length: Maximum text length in tokens.

    Returns:
        Both tensors `(texts, tokens)`.
    """
    cleaned = [normalize_caption(text) for text in texts] if normalize else list(texts)
    encoded = tokenizer(cleaned, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


@torch.no_grad()
def match_probabilities(
    model: MatchingModel,
    processor: BlipProcessor,
    pixel_values: torch.Tensor,
    texts: Sequence[str],
    *,
    normalize: bool = True,
) -> torch.Tensor:
    """The ITM probability that each text matches its image.

    An image can have `k` texts, which must be next to each other. It is encoded once for them.

    Args:
        model: A `MatchingModel` in evaluation mode.
        processor: The processor of the model.
        pixel_values: Normalised pixels `(images, 3, height, width)`.
        texts: `images * k` texts.
        normalize: Whether to clean the texts as the original does.

    Returns:
        `(images * k,)` in float32.
    """
    tokens = tokenize_texts(processor.tokenizer, texts, normalize=normalize)
    tokens = {name: values.to(pixel_values.device) for name, values in tokens.items()}
    logits = model.match_logits(model.encode_images(pixel_values), **tokens)
    return logits.float().softmax(1)[:, MATCHING]


class EncodedTexts(NamedTuple):
    """Texts in batches of tokens, and their features `(texts, width)`."""

    tokens: list[dict[str, torch.Tensor]]
    features: torch.Tensor


@dataclass(frozen=True)
class Matcher:
    """A saved model with its processor, which scores texts for pictures.

    Attributes:
        model: A `MatchingModel` in evaluation mode.
        processor: Its processor.
    """

    model: MatchingModel
    processor: BlipProcessor

    @classmethod
    def load(cls, name: str, *, device: Any = None, **options: Any) -> Self:
        """Load a directory or Hub id, full or adapter, to `device` (default: the first accelerator, else the CPU).

        `options` are those of `load_finished`.

        Raises:
            RecipeError: The model cannot be loaded, or is not a BLIP for retrieval.
        """
        device = usable_device(device or first_device())
        model, processor, _ = load_finished(name, MatchingModel, device=device, **options)
        return cls(model, processor)

    def preprocess(self, picture: Picture) -> torch.Tensor:
        """The `pixel_values` `(1, 3, height, width)` of a picture.

        Raises:
            BadImageError: The picture cannot be read.
        """
        return read_pixel_values(picture, self.processor.image_processor)

    def match(self, pixel_values: Sequence[torch.Tensor], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The ITM probabilities of the texts of each picture.

        Args:
            pixel_values: Tensors `(1, 3, height, width)`.
            texts: The texts of each picture, of the same number for all.
        """
        pixels = torch.cat(list(pixel_values)).to(self.model.device, self.model.dtype)
        flat = [text for own in texts for text in own]
        found = match_probabilities(self.model, self.processor, pixels, flat)
        return found.view(len(texts), -1).tolist()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise texts for ITM, and encode them for ITC."""
        tokens = [
            {
                name: values.to(self.model.device)
                for name, values in tokenize_texts(self.processor.tokenizer, part).items()
            }
            for part in batches(texts)
        ]
        return EncodedTexts(tokens, torch.cat([self.model.text_features(**part) for part in tokens]))

    @torch.no_grad()
    def compare(self, pixel_values: torch.Tensor, texts: EncodedTexts) -> tuple[list[float], list[float]]:
        """The ITM probability and the ITC cosine of each text with one picture `(1, 3, height, width)`."""
        embeds = self.model.encode_images(pixel_values.to(self.model.device, self.model.dtype))
        logits = torch.cat([self.model.match_logits(embeds, **part) for part in texts.tokens])
        cosines = texts.features @ self.model.image_features(embeds)[0]
        return logits.float().softmax(1)[:, MATCHING].tolist(), cosines.float().tolist()
