"""Ranks and recalls are those that one counts by hand."""

from __future__ import annotations

import math

import pytest
import torch

from blip_recipe.data.captions import captions_id
from blip_recipe.models.contrastive import split_loss
from blip_recipe.retrieval.metrics import PairsToMatch, Shortlist, first_match_rank, recalls, shortlist

IMAGES = torch.eye(3)
"""Three images, so that a text's features are its similarities to them."""
TEXTS = torch.tensor([[0.9, 0.1, 0.01], [0.2, 0.1, 0.02], [0.3, 0.8, 0.03], [0.5, 0.4, 0.6], [0.1, 0.7, 0.2]])
OWNERS = torch.tensor([0, 0, 1, 2, 2])


def test_an_image_is_found_by_its_best_caption_and_a_caption_by_its_only_image() -> None:
    text_ranks = first_match_rank(IMAGES, TEXTS, torch.arange(3), OWNERS)
    assert text_ranks.tolist() == [0, 0, 0]
    image_ranks = first_match_rank(TEXTS, IMAGES, OWNERS, torch.arange(3))
    assert image_ranks.tolist() == [0, 0, 0, 0, 1]
    found = recalls(text_ranks, image_ranks)
    assert found["text_recall_1"] == 1
    assert found["image_recall_1"] == 0.8
    assert found["image_recall_5"] == found["image_recall_10"] == 1
    assert found["recall_mean"] == pytest.approx((5 + 0.8) / 6)


def test_images_with_the_very_same_captions_are_one() -> None:
    captions = [["a", "b"], ["a", "c"], ["a", "b"], ["b", "a"], ["a"]]
    ids = list(map(captions_id, captions))
    assert [ids.index(each) for each in ids] == [0, 1, 0, 3, 4]
    # Part of checkpoints: queued pairs must be known in the next process too.
    assert ids[0] == captions_id(list(captions[0])) >= 0


def test_recalls_are_at_1_5_and_10() -> None:
    ranks = torch.tensor([0, 1, 4, 5, 9, 10])
    found = recalls(ranks, ranks)
    assert [found[f"image_recall_{rank}"] for rank in (1, 5, 10)] == [1 / 6, 3 / 6, 5 / 6]


def test_a_tie_with_another_image_is_lost_and_one_with_an_own_caption_is_none() -> None:
    same = torch.tensor([[1.0, 0.0]])
    ranks = first_match_rank(same, same.repeat(4, 1), torch.tensor([7]), torch.tensor([7, 7, 3, 3]))
    assert ranks.tolist() == [2]
    ranks = first_match_rank(same, same.repeat(2, 1), torch.tensor([7]), torch.tensor([7, 7]))
    assert ranks.tolist() == [0]


@pytest.mark.parametrize(("k", "expected"), [(2, [1, 0, 3]), (3, [2, 0, 3]), (5, [3, 0, 3])])
def test_the_best_candidates_are_ranked_again_before_all_others(k: int, expected: list[int]) -> None:
    best = shortlist(IMAGES, TEXTS, k)
    # By cosine, image 0 has texts 0, 3, 2, 1, 4; image 1 has 2, 4, 3, ...; image 2 has 3, 4, 2, 1, 0.
    assert best.candidates[:, :2].tolist() == [[0, 3], [2, 4], [3, 4]]
    scores = torch.zeros(3, min(k, 5))
    scores[0, 1] = 5.0
    scores[1, 0] = 5.0
    ids = torch.tensor([0, 1, 0])
    # The third query asks for the texts of image 0, which its cosines leave for the end.
    ranks = first_match_rank(IMAGES, TEXTS, ids, OWNERS, best, scores)
    assert ranks.tolist() == expected


def test_every_shortlisted_pair_is_matched_once_and_scored_by_both() -> None:
    texts_of_images, images_of_texts = shortlist(IMAGES, TEXTS, 2), shortlist(TEXTS, IMAGES, 1)
    pairs = PairsToMatch(texts_of_images, images_of_texts)
    codes = list(zip(pairs.images.tolist(), pairs.texts.tolist(), strict=True))
    by_hand = {(0, 0), (0, 3), (1, 2), (1, 4), (2, 3), (2, 4), (0, 1)}
    assert codes == sorted(by_hand)
    matches = torch.tensor([10.0 * image + text for image, text in codes])
    of_images, of_texts = pairs.scores(matches)
    for image in range(3):
        for place, text in enumerate(texts_of_images.candidates[image].tolist()):
            assert of_images[image, place] == pytest.approx(10.0 * image + text + TEXTS[text, image].item())
    for text in range(5):
        image = int(images_of_texts.candidates[text, 0])
        assert of_texts[text, 0] == pytest.approx(10.0 * image + text + TEXTS[text, image].item())


def test_ranks_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(50, 8, generator=generator), torch.randn(70, 8, generator=generator)
    query_ids, candidate_ids = torch.arange(50), torch.arange(70) % 50

    def ranks() -> tuple[torch.Tensor, Shortlist]:
        best = shortlist(queries, candidates, 6)
        scores = torch.sin(best.candidates.float())
        return first_match_rank(queries, candidates, query_ids, candidate_ids, best, scores), best

    whole, whole_list = ranks()
    monkeypatch.setattr("blip_recipe.retrieval.metrics.BLOCK", 7)
    blocks, list_of_blocks = ranks()
    assert torch.equal(whole, blocks)
    assert torch.equal(whole_list.candidates, list_of_blocks.candidates)
    assert len(set(whole.tolist())) > 10


def test_loss_of_a_split_by_hand() -> None:
    images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    loss = split_loss(images, texts, torch.tensor([0, 1, 1]), torch.tensor(0.5))

    def likely(scores: list[float], place: int) -> float:
        return math.log(math.exp(scores[place] / 0.5) / sum(math.exp(score / 0.5) for score in scores))

    to_images = [likely([1, 0], 0), likely([0, 1], 1), likely([0.6, 0.8], 1)]
    first, second = [1.0, 0.0, 0.6], [0.0, 1.0, 0.8]
    to_texts = [likely(first, 0), (likely(second, 1) + likely(second, 2)) / 2]
    assert loss.item() == pytest.approx(-(sum(to_images) / 3 + sum(to_texts) / 2) / 2)
