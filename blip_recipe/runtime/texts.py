"""Turn texts into token ids and back, as the tokenizer of transformers does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""The clean-up of transformers, in its order (`clean_up_tokenization_spaces` in `tokenizer_config.json`)."""


class Texts:
    """The tokenizer of a model.

    Args:
        path: Its `tokenizer.json`.
        padding: The id of the padding token.
    """

    def __init__(self, path: Path, padding: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.padding = padding

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The token ids of a text, with its first and last special tokens unless `special` is false."""
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def encode_all(self, texts: Iterable[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask `(texts, tokens)`; longer texts are cut, but keep their last special token."""
        encoded = [self.encode(text) for text in texts]
        return self.pad([ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]] for ids in encoded])

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Pad rows of ids to `(rows, tokens)`; returns them and their mask, 0 on padding."""
        ids = np.full((len(rows), max(map(len, rows))), self.padding, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(rows):
            ids[row, : len(each)] = each
            mask[row, : len(each)] = 1
        return ids, mask

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of generated tokens, without special tokens and without spaces before punctuation."""
        text = self.tokenizer.decode([int(each) for each in token_ids], skip_special_tokens=True)
        for spaced, closed in CLEAN_UP:
            text = text.replace(spaced, closed)
        return text.strip()
