"""Rows to `pixel_values` and `labels`, exactly as BLIP was trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from blip_recipe.captioning.data import join_prompt
from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.convert import read_record
from blip_recipe.data.pixels import normalize_pixels, read_resized
from blip_recipe.errors import RecipeError
from blip_recipe.models.text import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import ProcessorMixin


@dataclass
class CaptionCollator:
    """Batches images with captions as BLIP was trained.

    Each caption is tokenised as in the original repository (`models/blip.py`, `BLIP_Decoder.forward`): prompt and
    caption are one text, cut at `max_length` tokens; the first token is `[DEC]`; padding and prompt are not predicted,
    `[SEP]` is.

    Packed, an image is one row, its captions end to end: they share the image's keys and values in cross-attention, and
    padding is what an image has less than the one with most words. This is what `CaptionTrainer` and
    `BlipForCaptioning` take. Not packed, each caption is a row of its own beside a copy of its image: a batch of the
    stock class under the stock `Seq2SeqTrainer`.

    Args:
        processor (`BlipProcessor`): Image processor and tokenizer.
        prompt (`str`, defaults to `""`): Words every caption starts with.
        max_length (`int`, defaults to 40): Longest caption in tokens, prompt included.
        packed (`bool`, defaults to `True`): Whether the captions of an image share a row.
        normalize_captions (`bool`, defaults to `True`): Clean captions as BLIP's authors do.
        bos_token_id (`int`, *optional*): `[DEC]`, as the model's `text_config` has it. By default the tokenizer's own,
            or, of a plain BERT tokenizer, the id behind its last word, as in the original.

    Raises:
        RecipeError: Rows have no picture or no captions, or, packed, are not those of [`CaptionTrainer`].

    Example:
        ```python
        from transformers import BlipForConditionalGeneration, BlipProcessor, Seq2SeqTrainer
        from blip_recipe import CaptionCollator

        collator = CaptionCollator(BlipProcessor.from_pretrained(name), packed=False)
        trainer = Seq2SeqTrainer(model, args, train_dataset=photos["train"], data_collator=collator)
        ```
    """

    processor: ProcessorMixin
    prompt: str = ""
    max_length: int = 40
    packed: bool = True
    normalize_captions: bool = True
    bos_token_id: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of `rows`, whose pictures may have any size.

        Args:
            rows: Of a `CaptionDataset`; not packed, of any data set with a picture and captions in a row.

        Returns:
            Packed: `row` `(images,)`; `pixel_values` `(images, 3, height, width)` of bytes, which the trainer
            normalises on the device, or `image_embeds` `(images, patches, width)` where rows have them; and, each
            `(images, tokens)`, `input_ids`, `position_ids` counted anew in each caption, and `labels`. Padding is at
            position 0.

            Not packed: `pixel_values` `(captions, 3, height, width)` as the image processor gives them, and, each
            `(captions, tokens)`, `input_ids`, `attention_mask` and `labels`.
        """
        return self._pack(rows) if self.packed else self._pair(rows)

    def _pack(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if "row" not in rows[0]:
            raise RecipeError(
                f"A packed CaptionCollator was given rows of {', '.join(rows[0])}: expected those that CaptionTrainer "
                "makes of any data set. Give it packed=False to use it with rows of your own or the stock trainer."
            )
        encoded = [self._encode(row["captions"]) for row in rows]
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            **self._images(rows),
            "input_ids": self._pad([chain(*ids) for ids in encoded], self.processor.tokenizer.pad_token_id),
            "position_ids": self._pad([chain(*(range(len(each)) for each in ids)) for ids in encoded], 0),
            "labels": self._pad([chain(*map(self._label, ids)) for ids in encoded], IGNORED),
        }

    def _images(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if "image_embeds" in rows[0]:
            return {"image_embeds": torch.stack([row["image_embeds"] for row in rows])}
        return {"pixel_values": read_resized([row["image"] for row in rows], self.processor.image_processor)}

    def _pair(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        records = [read_record(row) for row in rows]
        encoded = [self._encode(record["captions"]) for record in records]
        ids = list(chain(*encoded))
        pixels = read_resized([record["image"] for record in records], self.processor.image_processor)
        pixel_values = normalize_pixels(pixels, self.processor.image_processor)
        return {
            "pixel_values": pixel_values.repeat_interleave(torch.tensor(list(map(len, encoded))), 0),
            "input_ids": self._pad(ids, self.processor.tokenizer.pad_token_id),
            "attention_mask": self._pad([[1] * len(each) for each in ids], 0),
            "labels": self._pad(map(self._label, ids), IGNORED),
        }

    def _encode(self, captions: Sequence[str]) -> list[list[int]]:
        """The token ids of each caption: `[DEC]`, prompt, words, `[SEP]`."""
        texts = [
            join_prompt(self.prompt, normalize_caption(each) if self.normalize_captions else each) for each in captions
        ]
        encoded = self.processor.tokenizer(texts, truncation=True, max_length=self.max_length).input_ids
        return [[self.start_token_id, *ids[1:]] for ids in encoded]

    def _label(self, ids: list[int]) -> list[int]:
        return [IGNORED] * self.prompt_length + ids[self.prompt_length :]

    @staticmethod
    def _pad(rows: Any, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(list(row)) for row in rows], batch_first=True, padding_value=value)

    @cached_property
    def prompt_length(self) -> int:
        """Tokens of the prompt with `[DEC]` and without `[SEP]`: 1 for an empty prompt."""
        return len(self.processor.tokenizer(self.prompt).input_ids) - 1

    @cached_property
    def start_token_id(self) -> int:
        """`[DEC]`."""
        tokenizer = self.processor.tokenizer
        if self.bos_token_id is not None:
            return self.bos_token_id
        return len(tokenizer) if tokenizer.bos_token_id is None else tokenizer.bos_token_id
