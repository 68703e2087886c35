"""Attention masks, losses and decoding of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of positions that are not predicted: padding and prompt."""


def token_losses(
    logits: torch.Tensor, targets: torch.Tensor, predicted: tuple[torch.Tensor, ...], label_smoothing: float
) -> torch.Tensor:
    """Cross entropies `(rows, tokens)` in float32; 0 for tokens that are not predicted.

    Args:
        logits: `(predicted tokens, vocabulary)`.
        targets: `(rows, tokens)`.
        predicted: Row and column indices of the predicted tokens in `targets`.
        label_smoothing: The label smoothing.
    """
    losses = F.cross_entropy(logits.float(), targets[predicted], reduction="none", label_smoothing=label_smoothing)
    return losses.new_zeros(targets.shape).index_put(predicted, losses)


def packed_mask(position_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The additive causal mask `(rows, 1, tokens, tokens)` of texts that are packed in rows.

    A text begins where `position_ids` `(rows, tokens)` are 0. A padding token has position 0, so it sees only itself.
    """
    text = (position_ids == 0).cumsum(1)
    position = torch.arange(position_ids.shape[1], device=position_ids.device)
    seen = (text[:, :, None] == text[:, None]) & (position[:, None] >= position)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def decode_texts(tokenizer: PreTrainedTokenizerBase, token_ids: torch.Tensor) -> list[str]:
    """Decode each row of generated `token_ids` `(texts, tokens)`, without special tokens, as the original does.

    BERT's tokenizer cuts off punctuation. The clean-up of transformers takes out the spaces that this leaves: `don't`,
    not `don ' t`. The original ran with transformers 4.15, where it was the default of `decode`.
    """
    found = tokenizer.batch_decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    return [text.strip() for text in found]
