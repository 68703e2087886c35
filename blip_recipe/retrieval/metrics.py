"""Compute recall at 1, 5 and 10 in both directions, with the best candidates of ITC re-ranked by ITM.

As in the original (`evaluation` and `itm_eval` in `train_retrieval.py`), candidates are ranked by cosine similarity,
and the best `k` are re-ranked by the sum of ITM logit and cosine. Unlike in the original, the other candidates follow
in the order of their cosines, and a tie with a wrong candidate counts as a miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blip_recipe.models.contrastive import BLOCK
from blip_recipe.retrieval.arguments import RANKS


@dataclass
class Shortlist:
    """The most similar candidates of each query.

    Attributes:
        candidates: Indices of candidates `(queries, k)`, most similar first.
        similarities: Their cosine similarities `(queries, k)`.
    """

    candidates: torch.Tensor
    similarities: torch.Tensor


def shortlist(queries: torch.Tensor, candidates: torch.Tensor, k: int) -> Shortlist:
    """The `k` most similar candidates of each query, by features `(queries, width)` and `(candidates, width)`."""
    k = min(k, len(candidates))
    blocks = [(block @ candidates.T).topk(k, dim=1) for block in queries.split(BLOCK)]
    return Shortlist(torch.cat([each.indices for each in blocks]), torch.cat([each.values for each in blocks]))


def first_match_rank(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_ids: torch.Tensor,
    candidate_ids: torch.Tensor,
    best: Shortlist | None = None,
    scores: torch.Tensor | None = None,
) -> torch.Tensor:
    """The rank of the first candidate with the id of each query, from 0, `(queries,)`.

    Args:
        queries: Features `(queries, width)`.
        candidates: Features `(candidates, width)`.
        query_ids: `(queries,)`.
        candidate_ids: `(candidates,)`; several can be equal.
        best: The re-ranked candidates; without them, candidates are ranked by cosine.
        scores: Their new scores `(queries, k)`; they are ranked before all other candidates.
    """
    ranks = []
    for rows in torch.arange(len(queries)).split(BLOCK):
        cosines = queries[rows] @ candidates.T
        own = query_ids[rows, None] == candidate_ids
        if best is None or scores is None:
            ranks.append(_count_better(cosines, own))
            continue
        reranked = best.candidates[rows]
        own_reranked = own.gather(1, reranked)
        behind = reranked.shape[1] + _count_better(cosines.scatter(1, reranked, -torch.inf), own)
        ranks.append(torch.where(own_reranked.any(1), _count_better(scores[rows], own_reranked), behind))
    return torch.cat(ranks)


def _count_better(scores: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The number of other candidates that score at least as high as the best of `own`, both `(queries, candidates)`."""
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~own & (scores > -torch.inf)).sum(1)


def recalls(text_ranks: torch.Tensor, image_ranks: torch.Tensor) -> dict[str, float]:
    """Compute `text_recall_1` to `image_recall_10` and their mean, as fractions.

    Args:
        text_ranks: The rank of each image's first own text, from 0, `(images,)`.
        image_ranks: The rank of each text's image, from 0, `(texts,)`.
    """
    found = {
        f"{kind}_recall_{rank}": float((ranks < rank).double().mean())
        for kind, ranks in (("text", text_ranks), ("image", image_ranks))
        for rank in RANKS
    }
    return found | {"recall_mean": sum(found.values()) / len(found)}


class PairsToMatch:
    """The pairs on the shortlists of both directions, without duplicates, ordered by image.

    Args:
        texts_of_images: The best texts of each image.
        images_of_texts: The best images of each text.

    Attributes:
        images, texts: Indices of the images and texts of the pairs, each `(pairs,)`.
    """

    def __init__(self, texts_of_images: Shortlist, images_of_texts: Shortlist) -> None:
        self._texts_of_images, self._images_of_texts = texts_of_images, images_of_texts
        self._by_image, self._by_text = self._codes()
        self._codes_once = torch.cat([self._by_image.flatten(), self._by_text.flatten()]).unique()
        count = len(images_of_texts.candidates)
        self.images, self.texts = self._codes_once // count, self._codes_once % count

    def _codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        texts, images = self._texts_of_images.candidates, self._images_of_texts.candidates
        count = len(images)
        return torch.arange(len(texts))[:, None] * count + texts, images * count + torch.arange(count)[:, None]

    def scores(self, matches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores of candidates (ITM logit plus cosine), `(images, k)` and `(texts, k)`.

        Args:
            matches: The ITM logit of each pair, `(pairs,)`.
        """
        of_images = matches[torch.searchsorted(self._codes_once, self._by_image)]
        of_texts = matches[torch.searchsorted(self._codes_once, self._by_text)]
        return of_images + self._texts_of_images.similarities, of_texts + self._images_of_texts.similarities
