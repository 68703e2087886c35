"""Rank a list of answers to questions, with the decoder's work shared between the answers.

Source: `rank_answer` in `models/blip_vqa.py` of the original repository, whose decoder (`models/med.py`) has a label
smoothing of 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from blip_recipe.vqa.answer_lists import RANKED_ANSWERS, SMOOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ROW = 1024
"""Maximum number of tokens in a packed row. The attention of a row grows with its square."""
MAX_LOGITS = 2048
"""Number of tokens whose logits are computed at once: 250 MB with BERT's vocabulary."""


class Ranking(NamedTuple):
    """The ranked answers to each question, best first. Each tensor is `(questions, ranked answers)`.

    Attributes:
        rows: Row numbers in the list of answers.
        losses: The losses that the answers are ranked by, the sums over their tokens.
        log_likelihoods: The log-likelihoods of the answers.
    """

    rows: torch.Tensor
    losses: torch.Tensor
    log_likelihoods: torch.Tensor


class _Packed(NamedTuple):
    """Answers end to end after one `[DEC]`, without their `[SEP]`, each tensor `(questions, tokens)`."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    answers: torch.Tensor  # the answer of each token, -1 for [DEC]
    targets: torch.Tensor  # the token after each token; padding is not predicted


@torch.no_grad()
def rank_answers(
    decoder: Any,
    question_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    answer_ids: torch.Tensor,
    top_k: int = RANKED_ANSWERS,
    label_smoothing: float = SMOOTHING["smoothed_loss"],
) -> Ranking:
    """Rank answers to each question by the decoder's loss.

    The `top_k` answers whose first token is most probable are chosen. Where several answers with the same first token
    are the last, `torch.topk` decides between them, as in the original. They are ranked by the sum of their tokens'
    losses, `[SEP]` included.

    Answers are packed in one row per question, as in training, so the decoder reads the question once for all of them.

    Args:
        decoder: The image-grounded decoder (`text_decoder`).
        question_states: `(questions, question tokens, width)`.
        attention_mask: `(questions, question tokens)`, 0 on padding.
        answer_ids: `(answers, tokens)`, each `[DEC]`, answer, `[SEP]`, padding.
        top_k: The number of answers to rank.
        label_smoothing: Label smoothing of the loss; 0 ranks by likelihood.
    """
    encoded: dict[str, Any] = {
        "encoder_hidden_states": question_states,
        "encoder_attention_mask": attention_mask,
        "use_cache": False,
        "is_decoder": True,
    }
    start = answer_ids[:1, :1].expand(len(question_states), 1)
    first = decoder.cls(decoder.bert(input_ids=start, **encoded).last_hidden_state[:, 0]).float()
    probabilities = first.softmax(1)[:, answer_ids[:, 1]]
    candidates = probabilities.topk(min(top_k, len(answer_ids)), dim=1).indices
    first = first.log_softmax(1)
    hard = -first.gather(1, answer_ids[:, 1][candidates])
    uniform = -first.mean(1, keepdim=True).expand(candidates.shape)
    if answer_ids.shape[1] > 2:
        at_once = max(1, MAX_ROW // (answer_ids.shape[1] - 2))
        rest = [_rest_losses(decoder, answer_ids[part], encoded) for part in candidates.split(at_once, dim=1)]
        hard, uniform = (
            hard + torch.cat([each[0] for each in rest], 1),
            uniform + torch.cat([each[1] for each in rest], 1),
        )
    losses, best = ((1 - label_smoothing) * hard + label_smoothing * uniform).sort(dim=1, stable=True)
    return Ranking(candidates.gather(1, best), losses, -hard.gather(1, best))


def _rest_losses(decoder: Any, answer_ids: torch.Tensor, encoded: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over all tokens but the first of an answer, each `(questions, answers)`.

    Args:
        decoder: The decoder.
        answer_ids: `(questions, answers, tokens)`.
        encoded: Arguments of the decoder for the questions.

    Returns:
        The cross entropies with the right tokens, and with the uniform distribution.
    """
    packed = _pack(answer_ids, decoder.config.pad_token_id)
    states = decoder.bert(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=_packed_mask(packed, encoded["encoder_hidden_states"].dtype),
        **encoded,
    ).last_hidden_state
    rows, columns = (packed.targets != decoder.config.pad_token_id).nonzero(as_tuple=True)
    hard, uniform = (torch.zeros(answer_ids.shape[:2], device=states.device) for _ in range(2))
    for part in _parts(len(rows)):
        at = rows[part], columns[part]
        log_probabilities = decoder.cls(states[at]).float().log_softmax(1)
        place = at[0], packed.answers[at]
        hard.index_put_(place, -log_probabilities.gather(1, packed.targets[at][:, None])[:, 0], accumulate=True)
        uniform.index_put_(place, -log_probabilities.mean(1), accumulate=True)
    return hard, uniform


def _parts(length: int) -> Iterator[slice]:
    """Slices of at most `MAX_LOGITS`."""
    return (slice(begin, begin + MAX_LOGITS) for begin in range(0, length, MAX_LOGITS))


def _pack(answer_ids: torch.Tensor, padding: int) -> _Packed:
    """Pack the answers to each question, `(questions, answers, tokens)`, into one row."""
    inputs, targets = answer_ids[..., 1:-1], answer_ids[..., 2:].flatten(1)
    questions, length = len(inputs), inputs.shape[2]
    is_token = targets != padding
    # Tokens first, in their order; rows with fewer keep some padding.
    order = is_token.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : int(is_token.sum(1).max())]
    start = torch.zeros(questions, 1, dtype=torch.long, device=answer_ids.device)
    return _Packed(
        torch.cat([answer_ids[:, 0, :1], inputs.flatten(1).gather(1, order)], 1),
        torch.cat([start, order % length + 1], 1),
        torch.cat([start - 1, order // length], 1),
        torch.cat([start + padding, targets.gather(1, order)], 1),
    )


def _packed_mask(packed: _Packed, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask `(questions, 1, tokens, tokens)`: a token sees `[DEC]`, and its answer up to itself."""
    answers, positions = packed.answers, packed.position_ids
    seen = (answers[:, :, None] == answers[:, None]) & (positions[:, :, None] >= positions[:, None])
    seen[:, :, 0] = True
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
