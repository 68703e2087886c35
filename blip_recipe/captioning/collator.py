"""Rows to `pixel_values` and `labels`, exactly as BLIP was trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from blip_recipe.captioning.modeling import IGNORED
from blip_recipe.data.pixels import read_pixels
from blip_recipe.models.processors import resize_pixels, stack_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import ProcessorMixin

    from blip_recipe.data.images import Picture


@dataclass
class CaptionCollator:
    """Batches rows of `CaptionDataset`: one row an image, its captions one after the other.

    Each caption is tokenised as in the original repository (`models/blip.py`, `BLIP_Decoder.forward`): prompt and
    caption are one text, cut at `max_length` tokens; the first token is `[DEC]`; padding and prompt are not predicted,
    `[SEP]` is. Laid end to end, the captions of an image share its keys and values in cross-attention, and padding is
    what an image has less than the one with most words.

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
        """A batch of `rows`: each `row`, `image` of any size (what `read_pixels` gives, or takes), and `captions`.

        Returns:
            `row` `(images,)`; `pixel_values` `(images, 3, height, width)` of bytes, which the trainer normalises on the
            device (`normalize_pixels`), or `image_embeds` `(images, patches, width)` where rows have them; and, each
            `(images, tokens)`, `input_ids`, `position_ids` counted anew in each caption, and `labels`. Padding is at
            position 0.
        """
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            **self._images(rows),
            **self._tokenize([row["captions"] for row in rows]),
        }

    def _images(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "image_embeds" in rows[0]:
            return {"image_embeds": torch.stack([row["image_embeds"] for row in rows])}
        return {"pixel_values": stack_pixels([self._resize(row["image"]) for row in rows])}

    def _resize(self, image: torch.Tensor | Picture) -> torch.Tensor:
        pixels = image if isinstance(image, torch.Tensor) else read_pixels(image)
        return resize_pixels(pixels, self.processor.image_processor)

    def _tokenize(self, captions: list[list[str]]) -> dict[str, torch.Tensor]:
        texts = [f"{self.prompt.rstrip()} {caption}".strip() for each in captions for caption in each]
        encoded = iter(self.processor.tokenizer(texts, truncation=True, max_length=self.max_length).input_ids)
        padding = {"input_ids": self.processor.tokenizer.pad_token_id, "position_ids": 0, "labels": IGNORED}
        batch: dict[str, list[torch.Tensor]] = {name: [] for name in padding}
        for each in captions:
            ids = [[self.bos_token_id, *next(encoded)[1:]] for _ in each]
            labels = [[IGNORED] * self.prompt_length + caption[self.prompt_length :] for caption in ids]
            batch["input_ids"].append(torch.tensor(list(chain(*ids))))
            batch["position_ids"].append(torch.cat([torch.arange(len(caption)) for caption in ids]))
            batch["labels"].append(torch.tensor(list(chain(*labels))))
        return {
            name: pad_sequence(batch[name], batch_first=True, padding_value=value) for name, value in padding.items()
        }

    @cached_property
    def prompt_length(self) -> int:
        """Tokens of the prompt with `[DEC]` and without `[SEP]`: 1 for an empty prompt."""
        return len(self.processor.tokenizer(self.prompt).input_ids) - 1
