"""Collate images and captions into batches as BLIP was trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from blip_recipe.data.captions import join_prompt, normalize_caption
from blip_recipe.data.convert import read_record
from blip_recipe.data.pixels import normalize_pixels, read_resized
from blip_recipe.data.rows import PROMPT
from blip_recipe.errors import RecipeError
from blip_recipe.models.text import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import ProcessorMixin


@dataclass
class CaptionCollator:
    """Batches images with captions as BLIP was trained.

    Each caption is tokenised as in the original repository (`models/blip.py`, `BLIP_Decoder.forward`): prompt and
    caption are one text, truncated to `max_length` tokens. The first token is `[DEC]`. `[SEP]` is predicted; padding
    and prompt are not.

    With `packed=True`, an image is one row with its captions end to end, so that they share the image's keys and values
    in cross-attention. `CaptionTrainer` and `BlipForCaptioning` take these batches. With `packed=False`, each caption
    is a row with its own copy of the image, for the stock model class and the stock `Seq2SeqTrainer`.

    Args:
        processor (`BlipProcessor`): Image processor and tokenizer.
        prompt (`str`, defaults to `""`): Text that every caption starts with. Rows with a `prompt` of their own have
            that instead.
        max_length (`int`, defaults to 40): Maximum caption length in tokens, prompt included.
        packed (`bool`, defaults to `True`): Whether the captions of an image share a row.
        normalize_captions (`bool`, defaults to `True`): Whether to clean captions as the original does.
        bos_token_id (`int`, *optional*): The id of `[DEC]` in the model's `text_config`. By default the tokenizer's
            `bos_token_id`, or for a plain BERT tokenizer the id after its last token, as in the original.

    Raises:
        RecipeError: Rows have no picture or no captions, or `packed` rows do not come from [`CaptionTrainer`].

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
        """Collate `rows`, whose pictures may have any size.

        Args:
            rows: Rows of a `CaptionDataset`; with `packed=False`, of any data set with a picture and captions.

        Returns:
            With `packed=True`: `row` `(images,)`; `pixel_values` `(images, 3, height, width)` in uint8, which the
            trainer normalises on the device, or `image_embeds` `(images, patches, width)` if the rows have them; and
            `input_ids`, `position_ids` and `labels`, each `(images, tokens)`. Positions restart at 0 in each caption;
            padding has position 0.

            With `packed=False`: normalised `pixel_values` `(captions, 3, height, width)`, and `input_ids`,
            `attention_mask` and `labels`, each `(captions, tokens)`.
        """
        return self._pack(rows) if self.packed else self._pair(rows)

    def _pack(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if "row" not in rows[0]:
            raise RecipeError(
                f"A packed CaptionCollator was given rows of {', '.join(rows[0])}: expected the rows of "
                "CaptionTrainer. Set packed=False to use it with your own rows or the stock trainer."
            )
        encoded, labels = zip(*map(self._encode, rows), strict=True)
        return {
            "row": torch.tensor([row["row"] for row in rows]),
            **self._images(rows),
            "input_ids": self._pad([chain(*ids) for ids in encoded], self.processor.tokenizer.pad_token_id),
            "position_ids": self._pad([chain(*(range(len(each)) for each in ids)) for ids in encoded], 0),
            "labels": self._pad([chain(*each) for each in labels], IGNORED),
        }

    def _images(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if "image_embeds" in rows[0]:
            return {"image_embeds": torch.stack([row["image_embeds"] for row in rows])}
        return {"pixel_values": read_resized([row["image"] for row in rows], self.processor.image_processor)}

    def _pair(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        records = [read_record(row) for row in rows]
        encoded, labels = zip(*map(self._encode, records), strict=True)
        ids = list(chain(*encoded))
        pixels = read_resized([record["image"] for record in records], self.processor.image_processor)
        pixel_values = normalize_pixels(pixels, self.processor.image_processor)
        return {
            "pixel_values": pixel_values.repeat_interleave(torch.tensor(list(map(len, encoded))), 0),
            "input_ids": self._pad(ids, self.processor.tokenizer.pad_token_id),
            "attention_mask": self._pad([[1] * len(each) for each in ids], 0),
            "labels": self._pad(chain(*labels), IGNORED),
        }

    def _encode(self, row: Mapping[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
        """The token ids of each caption (`[DEC]`, prompt, caption, `[SEP]`), and its labels."""
        prompt = row.get(PROMPT, self.prompt)
        captions = map(normalize_caption, row["captions"]) if self.normalize_captions else row["captions"]
        texts = [join_prompt(prompt, caption) for caption in captions]
        encoded = self.processor.tokenizer(texts, truncation=True, max_length=self.max_length).input_ids
        start = self.prompt_length if prompt == self.prompt else self.count_tokens(prompt)
        labels = [[IGNORED] * start + ids[start:] for ids in encoded]
        return [[self.start_token_id, *ids[1:]] for ids in encoded], labels

    @staticmethod
    def _pad(rows: Any, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(list(row)) for row in rows], batch_first=True, padding_value=value)

    def count_tokens(self, prompt: str) -> int:
        """The number of a prompt's tokens, including `[DEC]` but not `[SEP]`: 1 for an empty prompt."""
        return len(self.processor.tokenizer(prompt).input_ids) - 1

    @cached_property
    def prompt_length(self) -> int:
        """The number of tokens of `prompt`, including `[DEC]`."""
        return self.count_tokens(self.prompt)

    @cached_property
    def start_token_id(self) -> int:
        """The id of `[DEC]`."""
        tokenizer = self.processor.tokenizer
        if self.bos_token_id is not None:
            return self.bos_token_id
        return len(tokenizer) if tokenizer.bos_token_id is None else tokenizer.bos_token_id
