"""Generate texts with one row of image states for all texts of an image, and let finished images leave the batch."""

from __future__ import annotations

from typing import Any

import torch
from transformers import EncoderDecoderCache
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

PER_TEXT = ("attention_mask", "position_ids", "encoder_hidden_states", "encoder_attention_mask")
"""Arguments of the text decoder, besides the tokens, that have a row for each text."""


class SharedImageCache(EncoderDecoderCache):
    """A generation cache with one row of cross-attention keys and values per image, for any number of beams.

    Beams are only reordered within their image, so cross-attention needs no reordering.

    Attributes:
        image_embeds: `(images, patches, width)`, if cross-attention reads them instead of keys and values.
        rows: `(texts here,)`, the numbers of the texts of the batch whose states are here, ascending; None: all.
    """

    image_embeds: torch.Tensor | None = None
    rows: torch.Tensor | None = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the self-attention cache only; the beams of an image share its cross-attention cache."""
        places: Any = beam_idx if self.rows is None else self._places(beam_idx[self.rows])
        self.self_attention_cache.reorder_cache(places)

    def keep(self, images: torch.Tensor, rows: torch.Tensor) -> None:
        """Keep only the states of some images.

        Args:
            images: Their places among the images that are here, ascending.
            rows: The numbers of their texts in the batch, ascending.
        """
        self.self_attention_cache.batch_select_indices(self._places(rows))
        self.cross_attention_cache.batch_select_indices(images)
        if self.image_embeds is not None:
            self.image_embeds = self.image_embeds[images]
        self.rows = rows

    def _places(self, rows: torch.Tensor) -> torch.Tensor:
        """The places of texts among those that are here."""
        return rows if self.rows is None else torch.searchsorted(self.rows, rows)


class LeavingDecoder:
    """Stands for a text decoder in one generation, and computes only what the texts need.

    The texts of an image begin alike, so their beginning is computed once. The loops of transformers go on with all
    texts of a batch until the last is finished, and drop what comes after the end of the others: finished images are
    not computed, and their logits are 0, which processors of logits see too.

    Args:
        decoder: The text decoder.
        cache: Its cache in this generation.
        image_embeds: `(images, patches, width)`. Each image has the same number of texts.
        end_token_id: The token that ends a text.
    """

    def __init__(
        self, decoder: BlipTextLMHeadModel, cache: SharedImageCache, image_embeds: torch.Tensor, end_token_id: int
    ) -> None:
        self.decoder: Any = decoder
        self.cache, self.end_token_id = cache, end_token_id
        self.here = torch.arange(len(image_embeds), device=image_embeds.device)
        self.finished = torch.zeros_like(self.here, dtype=torch.bool)
        self.ended: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def run_loop(
        self,
        model: BlipTextLMHeadModel,
        input_ids: torch.LongTensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """Run the loop of transformers; the argument `custom_generate` of `generate`."""
        loop: Any = type(model)._beam_search
        if generation_config.num_beams == 1:
            loop = type(model)._sample
            self.ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return loop(self, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)

    def _prefill(
        self, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        """The decoder's output for the beginnings `input_ids` `(texts, tokens)`."""
        each = len(input_ids) // len(self.finished)
        firsts = torch.arange(0, len(input_ids), each, device=input_ids.device)
        own = _select(model_kwargs, len(input_ids), firsts)
        output = self.decoder._prefill(input_ids[firsts], generation_config, own, **kwargs)
        self.cache.self_attention_cache.batch_repeat_interleave(each)
        output.logits = output.logits[:, -1:].repeat_interleave(each, 0)  # the loops read no others
        return output

    def __call__(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        """The decoder's output for `input_ids` `(texts, 1)`, the last token of each text."""
        texts = len(input_ids)
        if self.ended is not None:
            self.ended |= input_ids[:, -1] == self.end_token_id
            self.finished = self.ended.view(len(self.finished), -1).all(1)
        self._let_leave(texts // len(self.finished))
        rows = self.cache.rows
        if rows is None:
            return self.decoder(input_ids=input_ids, **kwargs)
        output = self.decoder(input_ids=input_ids[rows], **_select(kwargs, texts, rows))
        all_logits = output.logits.new_zeros(texts, *output.logits.shape[1:])
        output.logits = all_logits.index_copy_(0, rows, output.logits)
        return output

    def _let_leave(self, texts_an_image: int) -> None:
        """Drop the states of finished images, if others stay."""
        stays = ~self.finished[self.here]
        if stays.all() or not stays.any():
            return
        self.here = self.here[stays]
        rows = self.here[:, None] * texts_an_image + torch.arange(texts_an_image, device=self.here.device)
        self.cache.keep(stays.nonzero().flatten(), rows.flatten())

    def _beam_search_has_unfinished_sequences(
        self, can_improve: torch.Tensor, is_complete: torch.Tensor, are_ended: torch.Tensor, early_stopping: bool | str
    ) -> torch.Tensor:
        """Note which images are finished: those whose beams transformers does not change any more.

        Args:
            can_improve: `(images, 1)`, whether a better text is possible.
            is_complete: `(images, beams)`, whether there is a complete text.
            are_ended: `(images, continuations)`, whether the search ends here.
            early_stopping: As in `generate`.
        """
        self.finished = ~can_improve.flatten() | (is_complete.all(1) & (early_stopping is True))
        return self.decoder._beam_search_has_unfinished_sequences(can_improve, is_complete, are_ended, early_stopping)


def _select(arguments: dict[str, Any], texts: int, rows: torch.Tensor) -> dict[str, Any]:
    """The arguments of a decoder for some of the `texts`."""
    return {
        name: value[rows] if name in PER_TEXT and value is not None and len(value) == texts else value
        for name, value in arguments.items()
    }
