"""Score how well texts match pictures with a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.images import open_image
from blip_recipe.retrieval.losses import MATCHING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import BlipProcessor

    from blip_recipe.models.decoding import DecodingSettings
    from blip_recipe.retrieval.modeling import BlipForRetrieval

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


def match_row(model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: DecodingSettings) -> str:
    """The ITM probability of a row's picture and first caption, as text."""
    pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
    found = match_probabilities(model, processor, pixel_values.to(model.device), row["captions"][:1])
    return f"{found.item():.4f}"
