"""BLEU and CIDEr-D of whole sets at once are those of one caption after the other, to the last bit."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blip_recipe.metrics.bleu import Bleu, ReferenceCounts, bleu_from_statistics, sentence_statistics
from blip_recipe.metrics.cider import Cider, ReferenceVectors, ngrams_of_image, score_against
from blip_recipe.metrics.ngram_index import NgramIndex
from blip_recipe.metrics.ngrams import count_ngrams

TEXT = st.lists(st.sampled_from(["a", "a", "a", "dog", "cat", "runs", "\xa0", "z"]), max_size=12).map(" ".join)
ROWS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=4)), min_size=1, max_size=8)


def ciders_one_by_one(captions: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D of each caption, from counters of each image."""
    counted = [[count_ngrams(text.split()) for text in texts] for texts in references]
    frequencies = Counter(ngram for image in counted for ngram in ngrams_of_image(image))
    log_images = math.log(len(references))
    weights = {ngram: log_images - math.log(count) for ngram, count in frequencies.items()}
    return [
        score_against(caption.split(), ReferenceVectors(image, weights), weights, log_images)
        for caption, image in zip(captions, counted, strict=True)
    ]


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_any_captions_have_the_scores_of_one_by_one(rows: list[tuple[str, list[str]]]) -> None:
    captions, references = [caption for caption, _ in rows], [texts for _, texts in rows]
    index = NgramIndex(references)
    bleu, cider = Bleu(index), Cider(index)
    for scored in (captions, [f"{text} quagga dog quagga" for text in captions], captions):
        statistics = [
            sentence_statistics(text.split(), ReferenceCounts(texts))
            for text, texts in zip(scored, references, strict=True)
        ]
        found = bleu.score(scored)
        assert np.array_equal(found.statistics[0].rows, statistics)
        assert found.per_image["bleu_4"] == [bleu_from_statistics(each)[3] for each in statistics]
        assert found.corpus["bleu_2"] == bleu_from_statistics([sum(each) for each in zip(*statistics, strict=True)])[1]
        assert cider.score(scored).per_image["cider"] == ciders_one_by_one(scored, references)


def test_the_index_counts_the_images_of_each_ngram() -> None:
    index = NgramIndex([["a dog a dog", "a dog runs"], ["a cat", ""]])
    # a in both images, dog, runs and cat in one; "a dog", "dog a", "dog runs", "a cat" in one each.
    assert sorted(index.by_length[0].frequencies.tolist()) == [1, 1, 1, 2]
    assert index.by_length[1].frequencies.tolist() == [1, 1, 1, 1]
    assert sorted(index.by_length[1].max_counts.tolist()) == [1, 1, 1, 2]
    words, (single, *_) = index.find(["a a zebra", "dog"])
    assert words.lengths.tolist() == [3, 1]
    assert single.found.counts.tolist() == [2, 1, 1]
    # zebra is in no reference, and dog not in one of the second image.
    assert (single.pairs < 0).tolist() == [False, True, True]
