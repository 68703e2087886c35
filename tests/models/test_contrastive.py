"""The losses of matching are those of the paper, by hand and step by step."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from retrievers import PlainMomentum, build_retriever, draw_pairs, plain_step, stock_copy

from blip_recipe.models.contrastive import Features, contrastive_losses, matching_losses, sample_negatives
from blip_recipe.models.momentum import MomentumState


def features(images: list[list[float]], texts: list[list[float]], ids: list[int]) -> Features:
    return Features(torch.tensor(images), torch.tensor(texts), torch.tensor(ids))


def test_contrastive_loss_by_hand() -> None:
    pair = features([[1.0, 0.0]], [[0.6, 0.8]], [7])
    candidates = features([[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.8, -0.6]], [7, 3])
    loss = contrastive_losses(pair, pair, candidates, torch.tensor(0.5), alpha=0.0)
    to_texts = math.log(math.exp(0.6 / 0.5) + math.exp(0.8 / 0.5)) - 0.6 / 0.5
    to_images = math.log(math.exp(0.6 / 0.5) + math.exp(0.8 / 0.5)) - 0.6 / 0.5
    assert loss.tolist() == pytest.approx([(to_texts + to_images) / 2])


def test_soft_targets_by_hand() -> None:
    own = features([[1.0, 0.0]], [[1.0, 0.0]], [7])
    momentum = features([[0.0, 1.0]], [[0.6, 0.8]], [7])
    candidates = features([[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.8, -0.6]], [7, 3])
    loss = contrastive_losses(own, momentum, candidates, torch.tensor(1.0), alpha=0.4)

    def one_way(scores: tuple[float, float], found: tuple[float, float]) -> float:
        total, found_total = sum(map(math.exp, scores)), sum(map(math.exp, found))
        targets = [0.4 * math.exp(each) / found_total for each in found]
        targets[0] += 0.6
        return -sum(t * math.log(math.exp(score) / total) for t, score in zip(targets, scores, strict=True))

    assert loss.item() == pytest.approx((one_way((0.6, 0.8), (0.8, -0.6)) + one_way((1.0, 0.0), (0.6, 0.8))) / 2)


def test_texts_of_one_image_are_positives_together() -> None:
    pair = features([[1.0, 0.0]], [[1.0, 0.0]], [7])
    candidates = features([[1.0, 0.0]] * 3, [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [7, 7, 3])
    loss = contrastive_losses(pair, pair, candidates, torch.tensor(1.0), alpha=0.0)
    total = math.log(math.e + 1 + 1 / math.e)
    assert loss.item() == pytest.approx(((total - 1) / 2 + total / 2 + math.log(3)) / 2)


def test_matching_loss_by_hand() -> None:
    true, other_text, other_image = (torch.tensor([pair]) for pair in ([0.0, 1.0], [2.0, 0.0], [0.5, 0.5]))
    losses = matching_losses(true, other_text, other_image, torch.tensor([True]))
    assert losses.tolist()[0] == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2)), math.log(2)])
    assert matching_losses(true, other_text, other_image, torch.tensor([False])).tolist()[0][1:] == [0, 0]


def test_hard_negatives_are_drawn_by_similarity_and_never_of_the_same_image() -> None:
    queries, candidates = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.9, 0.1]])
    same = torch.tensor([[True, False, False, True]])
    draws = 10_000
    counts: Counter[int] = Counter()
    for number in range(draws):
        drawn, exists = sample_negatives(queries, candidates, same, torch.tensor(0.5), torch.tensor([number / draws]))
        counts[int(drawn)] += 1
        assert exists.all()
    share = math.exp(0.8 / 0.5) / (math.exp(0.8 / 0.5) + 1)
    assert counts.keys() == {1, 2}
    assert counts[1] / draws == pytest.approx(share, abs=1 / draws)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_a_negative_is_found_however_sure_the_model_is_and_however_the_draw_falls(uniform: float) -> None:
    queries, candidates = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    same = torch.tensor([[True, True, False]])
    drawn, exists = sample_negatives(queries, candidates, same, torch.tensor(0.001), torch.tensor([uniform]))
    assert drawn.tolist() == [2]
    assert exists.tolist() == [True]


def test_images_alone_have_no_negatives() -> None:
    same = torch.ones(2, 2, dtype=torch.bool)
    drawn, exists = sample_negatives(torch.eye(2), torch.eye(2), same, torch.tensor(0.07), torch.tensor([0.3, 0.9]))
    assert exists.tolist() == [False, False]
    assert set(drawn.tolist()) <= {0, 1}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_step_equals_the_paper_written_plainly(attention: str) -> None:
    model, processor = build_retriever()
    if attention == "eager":
        model._switch_attention({type(m): type(m).__mro__[1] for m in model.modules() if "Sdpa" in type(m).__name__})
    stock = stock_copy(model)
    state = MomentumState(model, queue_size=6, momentum=0.995, seed=3)
    kept = PlainMomentum(
        copy.deepcopy(stock),
        list(state.image_queue.flip(0)),
        list(state.text_queue.flip(0)),
        state.id_queue.flip(0).tolist(),
    )
    with torch.no_grad():
        model.temperature.fill_(0.2)
    temperature = model.temperature.detach().clone().requires_grad_()
    # The second batch repeats images of the first one, which are in the queue by then, and one within itself.
    for step, ids in enumerate(([0, 1, 2, 3], [3, 4, 5, 4], [6, 0, 4, 7])):
        pairs = draw_pairs(processor, ids, seed=step)
        state.update(model)
        momentum = state.encode(**pairs)
        candidates, uniform = state.candidates(momentum), state.uniform(len(ids))
        inputs = {name: values for name, values in pairs.items() if name != "ids"}
        alpha = 0.4 * step / 2
        output = model(**inputs, momentum=momentum, candidates=candidates, alpha=alpha, uniform=uniform)
        assert output.contrastive_losses is not None
        assert output.matching_losses is not None
        losses = output.contrastive_losses.mean(), output.matching_losses.mean()
        expected = plain_step(stock, kept, pairs, temperature, alpha, uniform, model.enc_token_id)
        assert torch.allclose(torch.stack(losses), torch.stack(expected), atol=1e-5)
        compare_and_descend(model, sum(losses), stock, sum(expected), temperature)


def compare_and_descend(model, loss, stock, expected, temperature) -> None:  # type: ignore[no-untyped-def]
    """Gradients of both are equal; both take the same step of plain gradient descent."""
    loss.backward()
    expected.backward()
    assert model.temperature.grad.item() == pytest.approx(temperature.grad.item(), abs=1e-5)
    others = dict(stock.named_parameters()) | {"temperature": temperature}
    for name, weights in model.named_parameters():
        if others[name].grad is None:
            assert weights.grad is None or not weights.grad.any(), name
        else:
            assert torch.allclose(weights.grad, others[name].grad, atol=1e-5), name
    for weights in (*model.parameters(), *others.values()):
        if weights.grad is not None:
            weights.data -= 0.01 * weights.grad
            weights.grad = None
