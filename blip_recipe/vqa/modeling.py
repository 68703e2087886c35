"""A BLIP model for question answering as in the original, with the weights of the stock class.

The image-grounded encoder encodes the question, and the decoder generates the answer from the question's states.
Source: `models/blip_vqa.py` of the original repository, and section 4.3 of the paper (arXiv 2201.12086).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch.nn import functional as F
from transformers import BlipForQuestionAnswering
from transformers.modeling_outputs import ModelOutput
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from blip_recipe.data.images import open_image
from blip_recipe.models.attention import SDPA_CLASSES, SdpaTextAttention
from blip_recipe.models.stock import StockModel
from blip_recipe.models.text import IGNORED, decode_texts, packed_mask, token_losses
from blip_recipe.vqa.collator import encode_questions
from blip_recipe.vqa.data import normalize_question

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
            image_embeds = self.vision_model(pixel_values=pixel_values).last_hidden_state
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
            image_embeds = self.vision_model(
                pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding
            ).last_hidden_state
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

    @torch.no_grad()
    def rank(
        self,
        question_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        answer_ids: torch.Tensor,
        top_k: int = 128,
        label_smoothing: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rank a list of answers to each question by likelihood, best first.

        As in the original's `rank_answer`, the `top_k` answers with the most likely first token are ranked by the
        log-likelihood of all their tokens, `[SEP]` included. (The original ranks by its training loss, with a label
        smoothing of 0.1.)

        Args:
            question_states: `(questions, question tokens, width)`, from `encode_questions`.
            attention_mask: `(questions, question tokens)`, 0 on padding.
            answer_ids: `(answers, tokens)`, each `[DEC]`, answer, `[SEP]`, padding.
            top_k: The number of answers to rank.
            label_smoothing: Label smoothing.

        Returns:
            Row numbers of `answer_ids` and their log-likelihoods, each `(questions, min(top_k, answers))`.
        """
        questions, top_k = len(question_states), min(top_k, len(answer_ids))
        first = self._answer_logits(self._start(questions), question_states, attention_mask)[:, 0]
        candidates = first.log_softmax(1)[:, answer_ids[:, 1]].topk(top_k).indices
        ids = answer_ids[candidates.flatten()]
        logits = self._answer_logits(
            ids,
            question_states.repeat_interleave(top_k, 0),
            None if attention_mask is None else attention_mask.repeat_interleave(top_k, 0),
        )
        targets = ids.masked_fill(ids == cast("Any", self.config.text_config).pad_token_id, IGNORED)[:, 1:]
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing
        )
        likelihoods, order = (-losses.view(questions, top_k, -1).sum(2)).sort(descending=True, stable=True)
        return candidates.gather(1, order), likelihoods

    def _answer_logits(
        self, answer_ids: torch.Tensor, question_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits `(rows, tokens, vocabulary)` in float32. The causal mask hides the padding after an answer."""
        states = self.text_decoder.bert(
            input_ids=answer_ids,
            encoder_hidden_states=question_states,
            encoder_attention_mask=attention_mask,
            use_cache=False,
            is_decoder=True,
        ).last_hidden_state
        return self.text_decoder.cls(states).float()


def answer_row(model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: DecodingSettings) -> str:
    """Answer the question of a row with the decoding that the model was scored with."""
    pixel_values = processor.image_processor([open_image(row["image"])], return_tensors="pt").pixel_values
    question = encode_questions(processor.tokenizer, [normalize_question(row["question"])])
    inputs = {name: values.to(model.device) for name, values in {**question, "pixel_values": pixel_values}.items()}
    return decode_texts(processor.tokenizer, model.generate(**inputs, **settings.generate_kwargs()))[0]
