"""Tiny models compute with one thread, unless `OMP_NUM_THREADS` says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import save_captioner
from torch import nn

from blip_recipe.captioning.modeling import load_captioner
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.models import threads
from blip_recipe.models.threads import TINY, fit_threads

THREADS = 3


@pytest.fixture(autouse=True)
def several_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch have several threads, as it has on a user's machine."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_replaced", [])
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def model_of(parameters: int) -> nn.Module:
    return nn.Linear(parameters, 1, bias=False, device="meta")


@pytest.mark.parametrize(("parameters", "expected"), [(TINY - 1, 1), (TINY, THREADS)])
def test_the_size_of_a_model_decides(parameters: int, expected: int) -> None:
    fit_threads(model_of(parameters))
    assert torch.get_num_threads() == expected


def test_a_larger_model_after_a_tiny_one_has_the_threads_of_before() -> None:
    for parameters in (1, 2, TINY):
        fit_threads(model_of(parameters))
    assert torch.get_num_threads() == THREADS


def test_the_threads_that_a_user_sets_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    fit_threads(model_of(1))
    torch.set_num_threads(2)
    fit_threads(model_of(1))
    assert torch.get_num_threads() == 2
    fit_threads(model_of(TINY))
    monkeypatch.setenv("OMP_NUM_THREADS", str(THREADS))
    fit_threads(model_of(1))
    assert torch.get_num_threads() == THREADS


@pytest.mark.parametrize("use", ["train", "load"])
def test_trainers_and_loaded_models_follow_the_rule(use: str, tmp_path: Path) -> None:
    model = str(save_captioner(tmp_path / "captioner"))
    given: dict[str, Any] = {"use_cpu": True, "report_to": []}
    if use == "train":
        CaptionTrainer(model, CaptionTrainingArguments(str(tmp_path), **given))
    else:
        load_captioner(model)
    assert torch.get_num_threads() == 1
