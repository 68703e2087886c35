"""How well texts belong to pictures, with a trained model: probabilities of matching and similarities."""

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
"""Longest text in tokens (`models/blip_retrieval.py` of the original)."""


def tokenize_texts(
    tokenizer: Any, texts: Sequence[str], *, normalize: bool = True, max_length: int = MAX_TOKENS
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` `(texts, tokens)` as the original reads texts, `[CLS]` first.

    Args:
        tokenizer: BLIP's.
        texts: As written.
        normalize: Whether they are cleaned as the original's (`normalize_caption`: lower case, 30 words).
        max_length: Longest text in tokens.
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
    """The probability that text i belongs to image i, by the image-grounded encoder (ITM).

    An image may have several texts, `k` each: those of an image one after the other. It is encoded once for them.

    Args:
        model: `BlipForRetrieval` in evaluation mode.
        processor: Its processor.
        pixel_values: `(images, 3, height, width)`, normalised.
        texts: `images * k` of them.
        normalize: Whether texts are cleaned as the original's.

    Returns:
        `(images * k,)` in float32.
    """
    tokens = tokenize_texts(processor.tokenizer, texts, normalize=normalize)
    tokens = {name: values.to(pixel_values.device) for name, values in tokens.items()}
    logits = model.match_logits(model.encode_images(pixel_values), **tokens)
    return logits.float().softmax(1)[:, MATCHING]


def match_row(model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: DecodingSettings) -> str:
    """The probability that the first caption of a row belongs to its picture; nothing is generated."""
    pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
    found = match_probabilities(model, processor, pixel_values.to(model.device), row["captions"][:1])
    return f"{found.item():.4f}"
