"""Rows to `pixel_values` and `labels`, exactly as BLIP was trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.modeling import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import ProcessorMixin


@dataclass
class CaptionCollator:
    """Batches rows of `CaptionDataset`: each image once, all captions of the batch one under the other.

    As in the original repository (`models/blip.py`, `BLIP_Decoder.forward`): prompt and caption are tokenised as one
    text, cut at `max_length` tokens and padded to the longest; the first token is `[DEC]`; padding and prompt are not
    predicted, `[SEP]` is.

    Args:
        processor: BLIP's image processor and tokenizer.
        bos_token_id: `[DEC]`, the decoder's first token, as the model's `text_config` has it.
        prompt: Words every caption starts with.
        max_length: Longest caption in tokens, prompt included.
    """

    processor: ProcessorMixin
    bos_token_id: int
    prompt: str = ""
    max_length: int = 40

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of `rows` (each `row`, `image`, `captions`).

        Returns:
            `row` `(images,)`, `pixel_values` `(images, 3, height, width)`, `image_index` `(captions,)`, and
            `input_ids`, `attention_mask` and `labels` `(captions, tokens)`.
        """
        image_index = [image for image, row in enumerate(rows) for _ in row["captions"]]
        pixel_values = self.processor.image_processor([row["image"] for row in rows], return_tensors="pt").pixel_values
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            "pixel_values": pixel_values,
            "image_index": torch.tensor(image_index),
            **self._tokenize(
                [f"{self.prompt.rstrip()} {caption}".strip() for row in rows for caption in row["captions"]]
            ),
        }

    def _tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        batch = tokenizer(texts, padding="longest", truncation=True, max_length=self.max_length, return_tensors="pt")
        input_ids = batch.input_ids
        input_ids[:, 0] = self.bos_token_id
        labels = input_ids.masked_fill(batch.attention_mask == 0, IGNORED)
        labels[:, : self.prompt_length] = IGNORED
        return {"input_ids": input_ids, "attention_mask": batch.attention_mask, "labels": labels}

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt with `[DEC]` and without `[SEP]`: 1 for an empty prompt."""
        return len(self.processor.tokenizer(self.prompt).input_ids) - 1
