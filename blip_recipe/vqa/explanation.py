"""Explain the answer to a question by the parts of the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from blip_recipe.data.captions import normalize_question
from blip_recipe.errors import RecipeError
from blip_recipe.models.decoding import decoding_arguments
from blip_recipe.models.gradcam import Explainer, Over, check_length, find_words
from blip_recipe.models.heatmaps import Explanation
from blip_recipe.models.text import decode_texts
from blip_recipe.vqa.collator import MAX_ANSWER_LENGTH, MAX_QUESTION_LENGTH, answer_token_ids
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tokens import use_question_token

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BlipProcessor

    from blip_recipe.models.decoding import DecodingSettings


class AnswerExplainer(Explainer):
    """Explains the log-probability of an answer, `[SEP]` included, by the cross-attention of the question's words.

    Over the answer, the log-probability of each of its words is explained, and the maps of all tokens of the question
    are added.
    """

    model_class = BlipForAnswering
    explained = "question answerer"

    def __init__(self, model: BlipForAnswering, processor: BlipProcessor, settings: DecodingSettings) -> None:
        super().__init__(model, processor, settings)
        use_question_token(processor.tokenizer, self.model.config.text_config.bos_token_id)

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
        if text is None:
            raise RecipeError("There is no question, which a question answerer needs: add it after the picture.")
        question, tokenizer = normalize_question(text), self.processor.tokenizer
        encoding = tokenizer(question)
        check_length(question, len(encoding.input_ids), MAX_QUESTION_LENGTH)
        words = find_words(encoding, question)
        ids = torch.tensor([encoding.input_ids], device=embeds.device)
        answer = self._generate(ids, embeds) if answer is None else answer.strip()
        answer_words = find_words(tokenizer(answer), answer)
        check_length(answer, len(tokenizer(answer).input_ids), MAX_ANSWER_LENGTH)
        answer_ids = torch.tensor(answer_token_ids(tokenizer, [answer], MAX_ANSWER_LENGTH), device=embeds.device)

        def scores() -> torch.Tensor:
            logits = self.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                decoder_input_ids=answer_ids,
                decoder_attention_mask=torch.ones_like(answer_ids),
                image_embeds=embeds,
            ).logits
            found = logits[0, :-1].double().log_softmax(-1).gather(1, answer_ids[0, 1:, None])[:, 0]
            if over != "answer":
                return found.sum()[None]
            return torch.stack([found[[token - 1 for token in each]].sum() for each in answer_words.tokens])

        maps, values, layer = self._grad_cam(layer, scores)
        if over == "answer":
            words, of_words = answer_words, list(maps.sum(1))
        else:
            of_words = [maps[0, each].sum(0) for each in words.tokens]
        return Explanation(
            picture, question, tuple(words.texts), self._to_grid(of_words), values, layer=layer, answer=answer
        )

    @torch.no_grad()
    def _generate(self, ids: torch.Tensor, embeds: torch.Tensor) -> str:
        states = self.model.encode_questions(embeds, ids, torch.ones_like(ids))
        arguments = decoding_arguments(self.settings, {})
        found = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), question_states=states, **arguments
        )
        return decode_texts(self.processor.tokenizer, found)[0]
