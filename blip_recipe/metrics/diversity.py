"""Diversity of captions: distinct n-grams, vocabulary, unique and novel captions, and length."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from blip_recipe.metrics.ngrams import count_ngrams
from blip_recipe.metrics.scores import ScoredSet, Values
from blip_recipe.metrics.tokenizer import clean_caption, tokenize


class Diversity:
    """Computes the metric `diversity` of a set of captions; an image alone has no such scores.

    - `distinct_1`, `distinct_2`: number of different words divided by the number of words, and the same for word pairs
      (Li et al., 2016, arXiv 1510.03055, divide both by the number of words).
    - `vocabulary`: number of different words.
    - `unique`: number of different captions as a share of all (van Miltenburg et al., 2018,
      https://aclanthology.org/C18-1147, discuss this and the other measures).
    - `novel`: share of captions whose words equal those of no training caption; only with training captions.
    - `caption_length`: mean number of words.

    Args:
        training_captions: The captions that the model was trained on. They are read at the first score.
    """

    metrics = ("diversity",)

    def __init__(self, training_captions: Iterable[str] | None = None) -> None:
        self.training_captions = training_captions

    def score(self, metric: str, scored: ScoredSet) -> Values:
        """Compute the scores of all captions together."""
        words = [caption.split() for caption in scored.words]
        singles, pairs = ([ngram for each in words for ngram in count_ngrams(each)[n].elements()] for n in (0, 1))
        scores = {
            "distinct_1": len(set(singles)) / max(1, len(singles)),
            "distinct_2": len(set(pairs)) / max(1, len(pairs)),
            "vocabulary": float(len(set(singles))),
            "unique": len(set(scored.words)) / len(words),
            "caption_length": len(singles) / len(words),
        }
        if self._known is not None:
            plain = tokenize([clean_caption(caption) for caption in scored.captions])
            scores["novel"] = sum(caption not in self._known for caption in plain) / len(plain)
        return Values(scores, {})

    @cached_property
    def _known(self) -> frozenset[str] | None:
        """The training captions as words."""
        if self.training_captions is None:
            return None
        return frozenset(tokenize([clean_caption(caption) for caption in self.training_captions]))
