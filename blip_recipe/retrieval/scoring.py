"""Score how well texts match pictures with a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.images import Picture, open_image
from blip_recipe.models.contrastive import MATCHING
from blip_recipe.models.loading import load_finished
from blip_recipe.models.pipeline import first_device, usable_device
from blip_recipe.retrieval.modeling import BlipForRetrieval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from transformers import BlipProcessor

    from blip_recipe.models.decoding import DecodingSettings

MAX_TOKENS = 35
"""Maximum text length in tokens (`models/blip_retrieval.py` of the original)."""


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
    model: BlipForRetrieval,
    processor: BlipProcessor,
    pixel_values: torch.Tensor,
    texts: Sequence[str],
    *,
    normalize: bool = True,
) -> torch.Tensor:
    """The ITM probability that each text matches its image.

    An image can have `k` texts, which must be next to each other. It is encoded once for them.

    Args:
        model: `BlipForRetrieval` in evaluation mode.
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


@dataclass(frozen=True)
class Matcher:
    """A saved model with its processor, which scores texts for pictures.

    Attributes:
        model: `BlipForRetrieval` in evaluation mode.
        processor: Its processor.
    """

    model: BlipForRetrieval
    processor: BlipProcessor

    @classmethod
    def load(cls, name: str, *, device: Any = None, **options: Any) -> Self:
        """Load a directory or Hub id, full or adapter, to `device` (default: the first accelerator, else the CPU).

        `options` are those of `load_finished`.

        Raises:
            RecipeError: The model cannot be loaded, or is not a BLIP for retrieval.
        """
        device = usable_device(device or first_device())
        model, processor, _ = load_finished(name, BlipForRetrieval, device=device, **options)
        return cls(model, processor)

    def preprocess(self, picture: Picture) -> torch.Tensor:
        """The `pixel_values` `(1, 3, height, width)` of a picture.

        Raises:
            BadImageError: The picture cannot be read.
        """
        return self.processor.image_processor(open_image(picture), return_tensors="pt").pixel_values

    def match(self, pixel_values: torch.Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The ITM probabilities of the texts of each picture.

        Args:
            pixel_values: `(images, 3, height, width)`.
            texts: The texts of each picture, of the same number for all.
        """
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        flat = [text for own in texts for text in own]
        found = match_probabilities(self.model, self.processor, pixel_values, flat)
        return found.view(len(texts), -1).tolist()


def match_row(model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: DecodingSettings) -> str:
    """The ITM probability of a row's picture and first caption, as text."""
    pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
    found = match_probabilities(model, processor, pixel_values.to(model.device), row["captions"][:1])
    return f"{found.item():.4f}"
