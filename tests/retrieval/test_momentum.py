"""Momentum encoders, the queue, what checkpoints keep of them, and several processes that find what one finds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import CHECKOUT, run_code
from retrievers import build_retriever, draw_pairs, load_exactly
from safetensors.torch import load_file
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import BlipForImageTextRetrieval

from blip_recipe.models.contrastive import Features
from blip_recipe.models.matching import match_probabilities
from blip_recipe.models.momentum import NO_IMAGE, MomentumState, saved_temperature
from blip_recipe.models.processors import save_processor
from blip_recipe.retrieval.modeling import BlipForRetrieval


def batch(*ids: int) -> Features:
    """Features that tell which id they are of."""
    rows = torch.tensor(ids, dtype=torch.float)[:, None].expand(-1, 128)
    return Features(rows, -rows, torch.tensor(ids))


def test_the_queue_holds_the_newest_pairs_and_wraps_around() -> None:
    state = MomentumState(build_retriever()[0], queue_size=5, momentum=0.995, seed=0)
    assert state.image_queue.norm(dim=1).tolist() == pytest.approx([1.0] * 5)
    assert state.id_queue.tolist() == [NO_IMAGE] * 5
    assert state.candidates(batch(1, 2)).ids.tolist() == [1, 2, *[NO_IMAGE] * 5]
    assert state.candidates(batch(3, 4)).ids.tolist() == [3, 4, 1, 2, *[NO_IMAGE] * 3]
    assert state.candidates(batch(5, 6)).ids.tolist() == [5, 6, 1, 2, 3, 4, NO_IMAGE]
    assert state.id_queue.tolist() == [6, 2, 3, 4, 5]
    assert state.image_queue[:, 0].tolist() == [6, 2, 3, 4, 5]
    assert state.text_queue[:, 0].tolist() == [-6, -2, -3, -4, -5]
    state.candidates(batch(*range(10, 20)))
    assert sorted(state.id_queue.tolist()) == [15, 16, 17, 18, 19]


def test_no_queue_is_the_batch_alone() -> None:
    state = MomentumState(build_retriever()[0], queue_size=0, momentum=0.995, seed=0)
    state.candidates(batch(1, 2))
    assert state.candidates(batch(3)).ids.tolist() == [3]


def test_encoders_follow_the_model_slowly() -> None:
    model, _ = build_retriever()
    state = MomentumState(model, queue_size=2, momentum=0.9, seed=0)
    before = model.text_proj.weight.detach().clone()
    with torch.no_grad():
        model.text_proj.weight.add_(1.0)
    for _ in range(2):
        state.update(model)
    kept: Any = state.encoders["text_proj"]
    assert torch.allclose(kept.weight, before + 1 - 0.9**2, atol=1e-6)
    assert torch.equal(state.encoders["vision_proj"].weight, model.vision_proj.weight)  # type: ignore[arg-type]
    assert not any(weights.requires_grad for weights in state.parameters())


def test_a_checkpoint_goes_on_as_if_there_had_been_none(tmp_path: Path) -> None:
    model, processor = build_retriever()
    state = MomentumState(model, queue_size=5, momentum=0.5, seed=0)
    with torch.no_grad():
        model.temperature.fill_(0.1234567)
        model.text_proj.weight.mul_(2)
    state.update(model)
    pairs = draw_pairs(processor, [0, 1, 2])
    state.candidates(state.encode(**pairs))
    state.uniform(3)
    state.save(tmp_path, model.temperature)
    resumed = MomentumState(build_retriever(seed=1)[0], queue_size=5, momentum=0.5, seed=9)
    resumed.load(tmp_path)
    assert saved_temperature(tmp_path).equal(model.temperature.detach())
    for one in (state, resumed):
        one.update(model)
    assert torch.equal(state.uniform(4), resumed.uniform(4))
    for found, expected in zip(
        resumed.candidates(resumed.encode(**pairs)), state.candidates(state.encode(**pairs)), strict=True
    ):
        assert torch.equal(found, expected)


def test_what_is_saved_is_a_stock_model_with_the_temperature_in_its_configuration(tmp_path: Path) -> None:
    model, processor = build_retriever()
    with torch.no_grad():
        model.temperature.fill_(0.0333)
    model.eval().save_pretrained(tmp_path)
    save_processor(processor, tmp_path)
    stock = load_exactly(BlipForImageTextRetrieval, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == stock.state_dict().keys()
    assert stock.config.architectures == ["BlipForImageTextRetrieval"]
    assert math.exp(-stock.config.logit_scale_init_value) == pytest.approx(0.0333)
    again = load_exactly(BlipForRetrieval, tmp_path)
    assert again.temperature.item() == model.temperature.item()
    pairs = draw_pairs(processor, [0, 1, 2])
    pixels, ids, mask = pairs["pixel_values"], pairs["input_ids"], pairs["attention_mask"]
    with torch.no_grad():
        similarities = stock.eval()(ids, pixels, use_itm_head=False, attention_mask=mask).itm_score
        ours = again.image_features(again.encode_images(pixels)) @ again.text_features(ids, mask).T
        enc = torch.cat(
            [torch.full_like(ids[:, :1], processor.tokenizer.convert_tokens_to_ids("[ENC]")), ids[:, 1:]], 1
        )
        logits = stock(enc, pixels, attention_mask=mask).itm_score
    assert torch.allclose(ours, similarities, atol=1e-5)
    texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert torch.allclose(match_probabilities(model, processor, pixels, texts), logits.softmax(1)[:, 1], atol=1e-5)


IDS = [0, 1, 2, 3, 3, 4, 5, 6]


def train_step(rank: int, processes: int, directory: Path, negatives_from_all: bool) -> None:
    """Two steps of gradient descent of one process; the first one writes its losses and gradients."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting_{processes}", rank=rank, world_size=processes
    )
    model, processor = build_retriever()
    state = MomentumState(model, queue_size=6, momentum=0.995, seed=3)
    wrapped = DistributedDataParallel(model) if processes > 1 else model
    mine = len(IDS) // processes
    losses = torch.zeros(2, 2)
    for step in range(2):
        everything = draw_pairs(processor, IDS, seed=step)
        pairs = {name: values[rank * mine : (rank + 1) * mine] for name, values in everything.items()}
        # Each process pads to its own longest text.
        longest = int(pairs["attention_mask"].sum(1).max())
        pairs |= {name: pairs[name][:, :longest] for name in ("input_ids", "attention_mask")}
        state.update(model)
        momentum = state.encode(**pairs)
        inputs = {name: values for name, values in pairs.items() if name != "ids"}
        output = wrapped(
            **inputs,
            momentum=momentum,
            candidates=state.candidates(momentum),
            alpha=0.4,
            uniform=state.uniform(mine),
            negatives_from_all=negatives_from_all,
        )
        losses[step] = torch.stack([output.contrastive_losses.mean(), output.matching_losses.mean()]).detach()
        model.zero_grad()
        (output.contrastive_losses.mean() + output.matching_losses.mean()).backward()
        with torch.no_grad():
            for weights in model.parameters():
                assert weights.grad is not None
                weights.sub_(0.01 * weights.grad)
    distributed.all_reduce(losses)
    if rank == 0:
        gradients = {name: weights.grad for name, weights in model.named_parameters()}
        torch.save((losses / processes, gradients, state.state_dict()), directory / f"{processes}.pt")
    distributed.destroy_process_group()


TRAIN = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_momentum import train_step
rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
train_step(rank, processes, Path(sys.argv[3]), sys.argv[4] == "all")
"""


def train_in(processes: int, directory: Path, negatives: str) -> None:
    """Run `train_step` in so many processes."""
    done = run_code(TRAIN, Path(__file__).parent, CHECKOUT / "tests", directory, negatives, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_do_what_one_does_with_all_pairs(tmp_path: Path) -> None:
    for processes in (1, 2):
        train_in(processes, tmp_path, "all")
    (one, gradients, kept), (two, others, kept_by_two) = (torch.load(tmp_path / f"{each}.pt") for each in (1, 2))
    assert torch.allclose(one, two, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-5), name
    for name, values in kept.items():
        assert torch.allclose(values.float(), kept_by_two[name].float(), atol=1e-5), name


def test_negatives_of_ones_own_process_alone(tmp_path: Path) -> None:
    train_in(2, tmp_path, "own")
    losses, gradients, _ = torch.load(tmp_path / "2.pt")
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
