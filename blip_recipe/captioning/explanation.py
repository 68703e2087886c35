"""Explain the words of a caption by the parts of the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.models.captioner import generate_token_ids
from blip_recipe.models.decoding import decoding_arguments
from blip_recipe.models.gradcam import Explainer, check_length, find_words
from blip_recipe.models.heatmaps import Explanation
from blip_recipe.models.text import decode_texts

if TYPE_CHECKING:
    from PIL.Image import Image


class CaptionExplainer(Explainer):
    """Explains the log-probability of each word of a caption, given the picture and the words before it."""

    model_class = BlipForCaptioning
    explained = "captioner"

    @property
    def layers(self) -> Any:
        """The layers of the text decoder."""
        return self.model.text_decoder.bert.encoder.layer

    def _explain(
        self, picture: Image, embeds: torch.Tensor, text: str | None, *, layer: int | None, **options: Any
    ) -> Explanation:
        self._refuse(**options)
        caption = self._generate(embeds) if text is None else text.strip()
        tokenizer = self.processor.tokenizer
        encoding = tokenizer(caption)
        words = find_words(encoding, caption)
        prompt = tokenizer(self.settings.prompt).input_ids[:-1]
        ids = torch.tensor([[*prompt, *encoding.input_ids[1:]]], device=embeds.device)
        ids[:, 0] = self.model.config.text_config.bos_token_id
        positions = self.model.config.text_config.max_position_embeddings
        check_length(caption, ids.shape[1], positions)
        # A token is predicted at the position before it.
        tokens = [[token + len(prompt) - 2 for token in each] for each in words.tokens]

        def scores() -> torch.Tensor:
            logits = self.model(input_ids=ids, image_embeds=embeds).logits
            found = logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            return torch.stack([found[each].sum() for each in tokens])

        maps, values, layer = self._grad_cam(layer, scores)
        of_words = [own[each].sum(0) for own, each in zip(maps, tokens, strict=True)]
        return Explanation(picture, caption, tuple(words.texts), self._to_grid(of_words), values, layer=layer)

    def _generate(self, embeds: torch.Tensor) -> str:
        tokenizer, prompt = self.processor.tokenizer, self.settings.prompt
        found = generate_token_ids(self.model, tokenizer, embeds, prompt, **decoding_arguments(self.settings, {}))
        return decode_texts(tokenizer, found)[0]
