"""Tiny models compute with one thread, unless `OMP_NUM_THREADS` says otherwise; CPUs compute several batches."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import draw_pictures, save_captioner
from torch import nn

from blip_recipe.captioning.modeling import load_captioner
from blip_recipe.captioning.pipeline import caption_pipeline
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.captioning.writing import CaptionWriter
from blip_recipe.models import threads
from blip_recipe.models.threads import TINY, fit_threads, map_batches

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


class Work:
    """Doubles a number, after waiting until as many batches are computed at once as are expected."""

    def __init__(self, at_once: int) -> None:
        self.together = threading.Barrier(at_once)
        self.threads: set[tuple[int, int]] = set()

    def __call__(self, number: int) -> int:
        self.together.wait(timeout=60)
        self.threads.add((threading.get_ident(), torch.get_num_threads()))
        return 2 * number


@pytest.mark.parametrize(
    ("parameters", "count", "at_once", "share"),
    [(TINY, None, 3, 1), (TINY, 2, 1, THREADS), (TINY, 1, 1, THREADS), (TINY - 1, None, 1, THREADS)],
)
def test_a_cpu_computes_several_batches_at_once(
    parameters: int, count: int | None, at_once: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TINY", 10)
    model = nn.Linear(10 if parameters >= TINY else 1, 1, bias=False)
    work = Work(at_once)
    assert list(map_batches(work, range(12), model, count)) == [(number, 2 * number) for number in range(12)]
    assert len(work.threads) == at_once
    assert {own for _, own in work.threads} == {share}
    assert torch.get_num_threads() == THREADS


@pytest.mark.parametrize(
    ("cores", "count", "expected"), [(2, None, (2, 1)), (12, None, (6, 2)), (17, None, (5, 3)), (8, 3, (2, 3))]
)
def test_few_cores_are_left_idle(
    cores: int, count: int | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TINY", 0)
    torch.set_num_threads(cores)
    work = Work(expected[0])
    list(map_batches(work, range(60), nn.Linear(1, 1), count))
    assert (len(work.threads), {own for _, own in work.threads}) == (expected[0], {expected[1]})


def test_the_threads_are_as_before_when_only_some_batches_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TINY", 0)
    found = map_batches(lambda number: number, itertools.count(), nn.Linear(1, 1))
    assert [next(found) for _ in range(5)] == [(number, number) for number in range(5)]
    found.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == THREADS


def test_another_device_computes_one_batch_at_a_time() -> None:
    found = map_batches(Work(1), itertools.count(), model_of(TINY))
    assert list(itertools.islice(found, 3)) == [(0, 0), (1, 2), (2, 4)]


def test_a_batch_that_fails_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TINY", 0)
    with pytest.raises(ZeroDivisionError):
        list(map_batches(lambda number: 1 // number, itertools.count(-3), nn.Linear(1, 1)))
    assert torch.get_num_threads() == THREADS


def test_captions_of_batches_at_once_are_those_of_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = caption_pipeline(str(save_captioner(tmp_path / "captioner")), device="cpu", num_beams=3)
    pictures = list(enumerate([*draw_pictures(tmp_path / "pictures", 17), tmp_path / "none.png"]))
    torch.set_num_threads(THREADS)

    def write(count: int | None) -> list[tuple[int, dict[str, Any] | str]]:
        writer = CaptionWriter(pipeline, with_scores=True, matcher=LengthMatcher())
        rows = writer.write_all(pictures, 4, count)
        return [(number, row if isinstance(row, dict) else type(row).__name__) for number, row in rows]

    expected = write(None)
    monkeypatch.setattr(threads, "TINY", 0)
    assert write(None) == write(18) == expected
    assert len({str(row) for _, row in expected}) > 3
    assert [number for number, row in expected if isinstance(row, str)] == [17]


class LengthMatcher:
    """Matches by the length of a caption; it may be called from the thread that made it alone."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def preprocess(self, picture: Any) -> Any:
        return None

    def match(self, pixel_values: Sequence[Any], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        assert threading.get_ident() == self.thread
        return [[len(text) / 100 for text in own] for own in texts]
