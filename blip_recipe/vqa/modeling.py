"""A BLIP model for question answering as in the original, with the weights of the stock class.

The image-grounded encoder encodes the question, and the decoder generates the answer from the question's states.
Source: `models/blip_vqa.py` of the original repository, and section 4.3 of the paper (arXiv 2201.12086).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from transformers import BlipForQuestionAnswering
from transformers.modeling_outputs import ModelOutput
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from blip_recipe.data.captions import normalize_question
from blip_recipe.data.images import open_image
from blip_recipe.models.attention import SDPA_CLASSES, SdpaTextAttention
from blip_recipe.models.stock import StockModel
from blip_recipe.models.text import IGNORED, decode_texts, packed_mask, token_losses
from blip_recipe.models.vision import encode_images
from blip_recipe.vqa.answer_lists import RANKED_ANSWERS, SMOOTHING
from blip_recipe.vqa.collator import encode_questions
from blip_recipe.vqa.ranking import Ranking, rank_answers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import BlipConfig, BlipProcessor

    from blip_recipe.models.decoding import DecodingSettings


class MaskedTextAttention(BlipTextSelfAttention):
    """The stock attention with the mask of the encoder states in cross-attention, which the stock layer ignores."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map `(rows, tokens, width)` to the same shape; also returns the attention map."""
        return super().forward(hidden_states, attention_mask, encoder_hidden_states, attention_mask, **kwargs)


@dataclass
class AnsweringOutput(ModelOutput):
    """The output of `BlipForAnswering`.

    Attributes:
        token_losses: `(questions, tokens - 1)` in float32: the cross entropy of each next answer token, 0 where it is
            not predicted. Returned with `labels`.
        logits: `(questions, tokens, vocabulary)`. Returned without `labels`.
        question_states: `(questions, question tokens, width)`, the output of the image-grounded encoder.
        image_embeds: `(images, patches, width)`.
    """

    token_losses: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    question_states: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class BlipForAnswering(StockModel, BlipForQuestionAnswering):
    """`BlipForQuestionAnswering` for several questions per image, and several answers per question packed end to end.

    Encoder and decoder mask the padding of questions; the stock class does not mask it in the decoder's
    cross-attention. An image is encoded once for all its questions, and a question once for all its answers.
    """

    stock_class = BlipForQuestionAnswering
    lora_layers = r"text_(encoder|decoder\.bert)\.encoder\..*\.(query|key|value|dense)"
    decoding: ClassVar[dict[str, Any]] = {"max_length": 10, "min_length": 1}

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self._switch_attention({BlipTextSelfAttention: MaskedTextAttention})

    def init_from_stock(self) -> None:
        """Mask the padding of questions in cross-attention."""
        self._switch_attention({BlipTextSelfAttention: MaskedTextAttention})

    def use_sdpa(self) -> Self:
        """Switch all attention layers to `scaled_dot_product_attention`."""
        return self._switch_attention({**SDPA_CLASSES, MaskedTextAttention: SdpaTextAttention})

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> AnsweringOutput:
        """Predict each answer token from image, question and the tokens before it.

        Args:
            pixel_values: `(images, 3, height, width)`.
            input_ids: `(questions, question tokens)`, starting with `[ENC]`.
            attention_mask: `(questions, question tokens)`, 0 on padding.
            decoder_input_ids: `(questions, tokens)`, the answers to a question end to end, each starting with `[DEC]`.
            decoder_position_ids: `(questions, tokens)`, starting at 0 in each answer; padding is 0.
            decoder_attention_mask: `(questions, tokens)`, 0 on padding. Only for rows of one answer, without
                `decoder_position_ids`.
            labels: `(questions, tokens)`, not shifted; `-100` is not predicted. With labels, losses are returned
                instead of logits. (The stock class documents its labels as shifted, but shifts them itself.)
            image_embeds: `(images, patches, width)`, instead of `pixel_values`.
            image_index: `(questions,)`, the index of each question's image; by default one question per image.
            label_smoothing: Label smoothing (BLIP: 0.1).
            kwargs: Ignored. Because `forward` accepts them, Trainer counts the questions of all accumulated batches.
        """
        # Done first because it synchronises with the device, which is still idle here.
        predicted = None if labels is None else (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        if image_embeds is None:
            image_embeds = encode_images(self.vision_model, pixel_values)
        question_states = self.encode_questions(image_embeds, input_ids, attention_mask, image_index)
        if decoder_position_ids is not None:
            decoder_attention_mask = packed_mask(decoder_position_ids, self.dtype)
        answer_states = self.text_decoder.bert(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            encoder_hidden_states=question_states,
            encoder_attention_mask=attention_mask,
            use_cache=False,
            is_decoder=True,
        ).last_hidden_state
        output = AnsweringOutput(question_states=question_states, image_embeds=image_embeds)
        if labels is None or predicted is None:
            output.logits = self.text_decoder.cls(answer_states)
        else:
            logits = self.text_decoder.cls(answer_states[:, :-1][predicted])
            output.token_losses = token_losses(logits, labels[:, 1:], predicted, label_smoothing)
        return output

    def encode_questions(
        self,
        image_embeds: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        image_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode questions with the image-grounded encoder, `(questions, question tokens, width)`."""
        return self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_embeds if image_index is None else image_embeds[image_index],
        ).last_hidden_state

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        question_states: torch.Tensor | None = None,
        **generate_kwargs: Any,
    ) -> torch.Tensor:
        """Generate token ids `(questions * sequences, tokens)` of answers, starting with `[DEC]`.

        Like the stock class, from `pixel_values` or from `question_states`, but the decoder masks padding.
        """
        if question_states is None:
            image_embeds = encode_images(
                self.vision_model, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding
            )
            question_states = self.encode_questions(image_embeds, input_ids, attention_mask)
        text_config = cast("Any", self.config.text_config)
        return cast("Any", self.text_decoder).generate(
            input_ids=self._start(len(question_states)),
            encoder_hidden_states=question_states,
            encoder_attention_mask=attention_mask,
            eos_token_id=text_config.sep_token_id,
            pad_token_id=text_config.pad_token_id,
            **generate_kwargs,
        )

    def _start(self, rows: int) -> torch.Tensor:
        """`[DEC]` as the first token, `(rows, 1)`."""
        return torch.full((rows, 1), cast("Any", self.config.text_config).bos_token_id, device=self.device)

    def rank(
        self,
        question_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        answer_ids: torch.Tensor,
        top_k: int = RANKED_ANSWERS,
        label_smoothing: float = SMOOTHING["smoothed_loss"],
    ) -> Ranking:
        """Rank a list of answers to each question, best first.

        As in the original's `rank_answer`, the `top_k` answers with the most probable first token are ranked by the
        loss of all their tokens, `[SEP]` included, with a label smoothing of 0.1. Without label smoothing, they are
        ranked by likelihood.

        Args:
            question_states: `(questions, question tokens, width)`, from `encode_questions`.
            attention_mask: `(questions, question tokens)`, 0 on padding.
            answer_ids: `(answers, tokens)`, each `[DEC]`, answer, `[SEP]`, padding, from `encode_answers`.
            top_k: The number of answers to rank.
            label_smoothing: Label smoothing of the loss.

        Returns:
            Row numbers of `answer_ids`, losses and log-likelihoods, each `(questions, min(top_k, answers))`.
        """
        return rank_answers(self.text_decoder, question_states, attention_mask, answer_ids, top_k, label_smoothing)


def answer_row(model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: DecodingSettings) -> str:
    """Answer the question of a row with the decoding that the model was scored with."""
    pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
    question = encode_questions(processor.tokenizer, [normalize_question(row["question"])])
    inputs = {name: values.to(model.device) for name, values in {**question, "pixel_values": pixel_values}.items()}
    return decode_texts(processor.tokenizer, model.generate(**inputs, **settings.generate_kwargs()))[0]
