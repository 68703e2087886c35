"""Score captions with the same values as the COCO caption tools; everything installs with pip.

    scores = score_captions({7: "a dog"}, {7: ["a dog runs", "a brown dog"]}, metrics=["bleu", "cider"])

`CaptionScorer` caches the references for repeated evaluations.
"""

from __future__ import annotations

from blip_recipe.metrics.scorer import CaptionScorer, score_captions
from blip_recipe.metrics.scores import METRICS, ImageId, Scores

__all__ = ["METRICS", "CaptionScorer", "ImageId", "Scores", "score_captions"]
