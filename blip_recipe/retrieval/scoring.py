"""Write the matching probability of a row as text, for checks of published models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blip_recipe.data.images import open_image
from blip_recipe.models.matching import match_probabilities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import BlipProcessor

    from blip_recipe.models.decoding import DecodingSettings


def match_row(model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: DecodingSettings) -> str:
    """The ITM probability of a row's picture and first caption, as text."""
    pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
    found = match_probabilities(model, processor, pixel_values.to(model.device), row["captions"][:1])
    return f"{found.item():.4f}"
