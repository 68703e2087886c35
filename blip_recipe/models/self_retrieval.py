"""Self-retrieval recall: whether a caption finds its own picture among all of its set."""

from __future__ import annotations

import torch

from blip_recipe.metrics.scores import SELF_RANKS, Values
from blip_recipe.metrics.statistics import mean_statistics
from blip_recipe.models.contrastive import BLOCK


def self_recalls(images: torch.Tensor, captions: torch.Tensor) -> Values:
    """Compute `self_recall_1`, `self_recall_5` and `self_recall_10`.

    Each caption ranks all pictures by cosine. As in the recalls of retrieval, a tie with another picture counts as a
    miss.

    Args:
        images: Unit-length features of the pictures, `(images, width)`.
        captions: Those of their captions, `(images, width)`.
    """
    ranks: list[int] = []
    for rows in torch.arange(len(captions)).split(BLOCK):
        cosines = captions[rows] @ images.T
        own = cosines.gather(1, rows[:, None])
        ranks += ((cosines >= own).sum(1) - 1).tolist()
    per_image = {f"self_recall_{rank}": [float(each < rank) for each in ranks] for rank in SELF_RANKS}
    statistics = tuple(mean_statistics(name, values, is_share=True) for name, values in per_image.items())
    return Values({name: sum(values) / len(values) for name, values in per_image.items()}, per_image, statistics)
