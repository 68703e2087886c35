"""Explain the match of a text by the parts of the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.captions import MAX_WORDS, normalize_caption
from blip_recipe.errors import RecipeError
from blip_recipe.models.contrastive import MATCHING
from blip_recipe.models.gradcam import Explainer, check_length, find_words
from blip_recipe.models.heatmaps import Explanation
from blip_recipe.models.matching import MAX_TOKENS
from blip_recipe.retrieval.modeling import BlipForRetrieval

if TYPE_CHECKING:
    from PIL.Image import Image


class MatchExplainer(Explainer):
    """Explains the ITM logit of a match by the cross-attention of the text's words."""

    model_class = BlipForRetrieval
    explained = "matcher"

    @property
    def default_layer(self) -> int:
        """As for other models, but not the last layer: behind it, the logit depends on `[ENC]` alone."""
        return max(0, min(super().default_layer, len(self.layers) - 2))

    def _explain(
        self, picture: Image, embeds: torch.Tensor, text: str | None, *, layer: int | None, **options: Any
    ) -> Explanation:
        self._refuse(**options)
        if text is None:
            raise RecipeError("There is no text, which a matcher needs: add it after the picture.")
        if layer == len(self.layers) - 1:
            raise RecipeError(
                f"--layer is {layer}, the last one: behind it, a match depends on the start token alone, so words have "
                f"no maps. Expected a number from 0 to {layer - 1}."
            )
        cleaned = normalize_caption(text, None)
        if len(cleaned.split()) > MAX_WORDS:
            raise RecipeError(
                f"The text has {len(cleaned.split())} words: expected at most {MAX_WORDS}, for a matcher reads no "
                f"more. Shorten {cleaned!r:.200}."
            )
        encoding = self.processor.tokenizer(cleaned)
        check_length(cleaned, len(encoding.input_ids), MAX_TOKENS)
        words = find_words(encoding, cleaned)
        ids = torch.tensor([encoding.input_ids], device=embeds.device)

        def scores() -> torch.Tensor:
            return self.model.match_logits(embeds, ids, torch.ones_like(ids))[:, MATCHING]

        maps, values, layer = self._grad_cam(layer, scores)
        of_words = [maps[0, each].sum(0) for each in words.tokens]
        return Explanation(picture, cleaned, tuple(words.texts), self._to_grid(of_words), values, layer=layer)
