"""Change the scores of next tokens: what a text may not repeat, where it may end, and samples."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from blip_recipe.runtime.settings import Search


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits along the last axis, in float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_k(values: np.ndarray, count: int) -> np.ndarray:
    """Indices `(rows, count)` of the largest values of each row, largest first; of equal ones, the first."""
    if count < values.shape[1]:
        candidates = np.sort(np.argpartition(values, -count, axis=1)[:, -count:], axis=1)
    else:
        candidates = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    order = np.argsort(-np.take_along_axis(values, candidates, axis=1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)


def restrict(scores: np.ndarray, texts: np.ndarray, search: Search) -> np.ndarray:
    """Apply repetition penalty, forbidden repetitions and minimum length, in the order of transformers.

    Args:
        scores: Logits or log-probabilities `(images, beams, vocabulary)`.
        texts: The texts so far `(images, beams, tokens)`, prompt included.
        search: The limits.
    """
    length = texts.shape[2]
    if search.repetition_penalty != 1:
        present = np.take_along_axis(scores, texts, axis=2)
        penalty = np.float32(search.repetition_penalty)
        scores = scores.copy()
        np.put_along_axis(scores, texts, np.where(present < 0, present * penalty, present / penalty), axis=2)
    if 0 < search.no_repeat_ngram_size <= length:
        scores = _forbid_repetitions(scores, texts, search.no_repeat_ngram_size)
    if length < search.min_length:
        scores = scores.copy()
        scores[..., search.end] = -np.inf
    return scores


def _forbid_repetitions(scores: np.ndarray, texts: np.ndarray, size: int) -> np.ndarray:
    """Exclude the tokens that would complete a sequence of `size` tokens that a text already has."""
    windows = np.lib.stride_tricks.sliding_window_view(texts, size, axis=2)  # (images, beams, places, size)
    latest = texts[..., None, texts.shape[2] - size + 1 :]
    image, beam, place = (windows[..., :-1] == latest).all(axis=-1).nonzero()
    scores = scores.copy()
    scores[image, beam, windows[image, beam, place, -1]] = -np.inf
    return scores


def sample_tokens(scores: np.ndarray, uniforms: np.ndarray, search: Search) -> np.ndarray:
    """Sample tokens `(images, texts)` from the nuclei (arXiv 1904.09751) of scores with given random numbers.

    Args:
        scores: `(images, texts, vocabulary)`.
        uniforms: `(images, texts)` in [0, 1).
        search: Temperature, `top_k` and `top_p`.
    """
    rows = scores.reshape(-1, scores.shape[-1])
    tokens = top_k(rows, min(search.top_k or rows.shape[1], rows.shape[1]))
    logits = np.take_along_axis(rows, tokens, axis=1).astype(np.float64) / search.temperature
    probabilities = np.exp(log_softmax(logits))
    before = probabilities.cumsum(axis=1) - probabilities
    sums = np.where(before >= search.top_p, 0, probabilities).cumsum(axis=1)
    place = (sums <= uniforms.reshape(-1, 1) * sums[:, -1:]).sum(axis=1, keepdims=True)
    chosen = np.take_along_axis(tokens, np.minimum(place, tokens.shape[1] - 1), axis=1)
    return chosen.reshape(scores.shape[:2])


def picture_uniforms(content: bytes, seed: int, count: int, steps: int) -> np.ndarray:
    """Draw random numbers `(count, steps)` in [0, 1), seeded with the seed and the bytes of a picture.

    The first rows do not depend on `count`.
    """
    picture = np.frombuffer(hashlib.sha256(content).digest(), dtype="<u4").tolist()
    drawn = [np.random.default_rng([seed, number, *picture]).random(steps, dtype=np.float32) for number in range(count)]
    return np.stack(drawn)
