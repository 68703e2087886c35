"""Greedy search, sampling and beam search in numpy, with the results of `generate` of transformers 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from blip_recipe.runtime.scores import log_softmax, restrict, sample_tokens, top_k

if TYPE_CHECKING:
    from blip_recipe.runtime.settings import Search

IMPOSSIBLE = np.float32(-1e9)
"""The score of a beam that must not be chosen, as in transformers."""


class Decoder(Protocol):
    """A model that predicts the next token of texts, and remembers the texts."""

    def read(self, input_ids: np.ndarray) -> np.ndarray:
        """Read tokens `(images, beams, tokens)`; returns the last logits `(images, beams, vocabulary)`."""
        ...

    def reorder(self, beams: np.ndarray) -> None:
        """Continue with the texts `beams` `(images, beams)` of each image; there may be more or fewer than before."""
        ...


def generate(
    decoder: Decoder, prompt_ids: np.ndarray, search: Search, uniforms: np.ndarray | None = None
) -> np.ndarray:
    """Generate the token ids `(images, texts, tokens)` that follow a prompt.

    Args:
        decoder: The decoder, which has read nothing.
        prompt_ids: `(images, tokens)`, the same for all images, starting with the start token.
        search: What is searched for.
        uniforms: For sampling, random numbers `(images, texts, steps)` in [0, 1).
    """
    images, length = prompt_ids.shape
    several = search.num_beams if search.num_beams > 1 else search.num_return_sequences
    logits = decoder.read(prompt_ids[:, None])
    # All beams and samples begin with the prompt, which is read once.
    first = np.zeros((images, several), dtype=np.int64)
    decoder.reorder(first)
    logits = np.take_along_axis(logits, first[..., None], axis=1)
    texts = np.repeat(prompt_ids[:, None], several, axis=1)
    find = _search_beams if search.num_beams > 1 else _extend
    return find(decoder, texts, logits, search, uniforms)[..., length:]


def _extend(
    decoder: Decoder, texts: np.ndarray, logits: np.ndarray, search: Search, uniforms: np.ndarray | None
) -> np.ndarray:
    """Extend each text `(images, texts, tokens)` with its likeliest or a sampled token, until all have ended."""
    ended = np.zeros(texts.shape[:2], dtype=bool)
    for step in range(search.max_length - texts.shape[2]):
        scores = restrict(logits, texts, search)
        tokens = scores.argmax(axis=-1) if uniforms is None else sample_tokens(scores, uniforms[..., step], search)
        tokens = np.where(ended, search.padding, tokens)
        texts = np.concatenate([texts, tokens[..., None]], axis=-1)
        ended |= tokens == search.end
        if ended.all() or texts.shape[2] == search.max_length:
            break
        logits = decoder.read(tokens[..., None])
    return texts


@dataclass
class _Found:
    """Complete texts, best first: `texts` `(images, beams, max_length)`, `scores`, `lengths` and `is_complete`."""

    texts: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray
    is_complete: np.ndarray

    def keep_best(self, beams: int, *others: np.ndarray) -> None:
        """Merge texts, scores, lengths and `is_complete` of others, and keep the best."""
        merged = [
            np.concatenate(pair, axis=1)
            for pair in zip((self.texts, self.scores, self.lengths, self.is_complete), others, strict=True)
        ]
        best = top_k(merged[1], beams)
        self.texts, self.scores, self.lengths, self.is_complete = (gather_beams(each, best) for each in merged)


def _search_beams(
    decoder: Decoder, running: np.ndarray, logits: np.ndarray, search: Search, _: np.ndarray | None
) -> np.ndarray:
    """Search for the most probable texts, from `running` `(images, beams, tokens)`.

    As in transformers, twice as many continuations as beams are compared, so that enough go on where some end.
    """
    images, beams, start = running.shape
    scores = np.tile(np.array([0, *[IMPOSSIBLE] * (beams - 1)], dtype=np.float32), (images, 1))
    found = _empty(running, search)
    improvable = np.ones((images, 1), dtype=bool)
    for length in range(start, search.max_length):
        likely = restrict(log_softmax(logits), running, search) + scores[..., None]
        chosen = top_k(likely.reshape(images, -1), 2 * beams)
        chosen_scores = np.take_along_axis(likely.reshape(images, -1), chosen, axis=1)
        parents, tokens = np.divmod(chosen, likely.shape[-1])
        texts = np.concatenate([gather_beams(running, parents), tokens[..., None]], axis=-1)
        ends = (tokens == search.end) | (length + 1 == search.max_length)

        kept = top_k(chosen_scores + ends * IMPOSSIBLE, beams)
        running, scores = gather_beams(texts, kept), gather_beams(chosen_scores + ends * IMPOSSIBLE, kept)

        just_completed = ends & (np.arange(2 * beams) < beams)
        final = chosen_scores / np.float32((length + 1 - search.uncounted) ** search.length_penalty)
        closed = found.is_complete.all(axis=1, keepdims=True) & (search.early_stopping is True)
        final = final + (closed * IMPOSSIBLE + ~improvable * IMPOSSIBLE + ~just_completed * IMPOSSIBLE)
        padded = np.pad(texts, ((0, 0), (0, 0), (0, found.texts.shape[2] - length - 1)), constant_values=_fill(search))
        found.keep_best(beams, padded, final, np.full(final.shape, length + 1), just_completed)

        improvable &= _can_improve(scores, found, length + 1, search)
        if not improvable.any() or ends.all() or (found.is_complete.all() and search.early_stopping is True):
            break
        decoder.reorder(gather_beams(parents, kept))
        logits = decoder.read(running[..., -1:])
    best = slice(0, search.num_return_sequences)
    return found.texts[:, best, : found.lengths[:, best].max()]


def _empty(running: np.ndarray, search: Search) -> _Found:
    """No complete texts yet."""
    images, beams, start = running.shape
    texts = np.full((images, beams, search.max_length), _fill(search), dtype=np.int64)
    texts[..., :start] = running
    scores = np.full((images, beams), IMPOSSIBLE, dtype=np.float32)
    return _Found(texts, scores, np.full((images, beams), start), np.zeros((images, beams), dtype=bool))


def _fill(search: Search) -> int:
    """The token after the end of a beam: transformers takes a padding id of 0 as missing."""
    return search.padding or search.end


def _can_improve(scores: np.ndarray, found: _Found, length: int, search: Search) -> np.ndarray:
    """Whether a running beam of each image can still become better than a complete one, `(images, 1)`."""
    hopeful = search.early_stopping == "never" and search.length_penalty > 0
    longest = (search.max_length if hopeful else length) - search.uncounted
    best = scores[:, :1] / np.float32(longest**search.length_penalty)
    worst = np.where(found.is_complete, found.scores.min(axis=1, keepdims=True), IMPOSSIBLE)
    return np.any(best > worst, axis=1, keepdims=True)


def gather_beams(values: np.ndarray, beams: np.ndarray) -> np.ndarray:
    """Choose `beams` `(images, chosen)` of values `(images, beams, ...)`."""
    return np.take_along_axis(values, beams.reshape(*beams.shape, *[1] * (values.ndim - 2)), axis=1)
