"""Caption scores equal to those of the COCO caption tools, installed by pip alone.

    scores = score_captions({7: "a dog"}, {7: ["a dog runs", "a brown dog"]}, metrics=["bleu", "cider"])

`CaptionScorer` keeps everything that a second evaluation can use again.
"""

from __future__ import annotations

from blip_recipe.metrics.scorer import CaptionScorer, score_captions
from blip_recipe.metrics.scores import METRICS, ImageId, Scores

__all__ = ["METRICS", "CaptionScorer", "ImageId", "Scores", "score_captions"]
