"""Checkpoints are whole or are not there, torn ones are told apart, and the last whole one is never deleted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from blip_recipe.training.checkpoints import (
    MANIFEST,
    STAGING,
    clear_output_dir,
    find_checkpoints,
    last_checkpoint,
    move_into_place,
    rotate_checkpoints,
)


def save(output_dir: Path, step: int, best: int | None = None) -> Path:
    """A checkpoint as a trainer writes it."""
    staged, checkpoint = output_dir / STAGING / f"checkpoint-{step}", output_dir / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (staged / "optimizer.pt").write_bytes(b"moments" * step)
    (staged / "rng_state.pth").touch()
    state = {"global_step": step, "best_model_checkpoint": f"/elsewhere/checkpoint-{best}" if best else None}
    (staged / "trainer_state.json").write_text(json.dumps(state))
    move_into_place(staged, checkpoint)
    return checkpoint


def keep_weights_alone(checkpoint: Path) -> None:
    """What `save_only_model` leaves."""
    for name in ("optimizer.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    files = {name: entry for name, entry in manifest["files"].items() if (checkpoint / name).exists()}
    (checkpoint / MANIFEST).write_text(json.dumps({"files": files}))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()


TEARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (
        lambda it: (it / "model.safetensors").write_bytes(b"x" * 9),
        "model.safetensors has 9 bytes, expected 10240",
    ),
    "altered": (lambda it: flip_a_bit(it / "optimizer.pt"), "optimizer.pt has changed since it was written"),
    "a file missing": (lambda it: (it / "optimizer.pt").unlink(), "optimizer.pt"),
    "no state": (lambda it: (it / "trainer_state.json").unlink(), "trainer_state.json"),
    "not finished": (lambda it: (it / MANIFEST).unlink(), "is missing"),
    "manifest cut off": (lambda it: (it / MANIFEST).write_text('{"files": {'), "column"),
    "empty": (empty, "is missing"),
    "weights alone": (keep_weights_alone, "save_only_model"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_skipped_with_one_line_that_names_it(
    tear: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, torn = save(tmp_path, 9), save(tmp_path, 10)
    assert last_checkpoint(tmp_path) == torn
    harm, told = TEARS[tear]
    harm(torn)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == whole
    (line,) = caplog.messages
    assert line.startswith("checkpoint-10 is damaged and skipped: ")
    assert told in line
    assert "\n" not in line


def test_a_checkpoint_whose_best_is_torn_would_end_with_other_weights_and_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, best = save(tmp_path, 2), save(tmp_path, 4, best=4)
    assert last_checkpoint(tmp_path) == best
    save(tmp_path, 6, best=4)
    flip_a_bit(best / "model.safetensors")
    assert last_checkpoint(tmp_path) == first
    assert caplog.messages[0].startswith("checkpoint-6 is damaged and skipped: its best checkpoint checkpoint-4 is dam")


def test_a_checkpoint_has_its_name_only_once_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / STAGING / "checkpoint-8").mkdir(parents=True)
    (tmp_path / STAGING / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
    assert find_checkpoints(tmp_path) == []
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_takes_the_place_of_a_torn_one_of_its_step(tmp_path: Path) -> None:
    empty(save(tmp_path, 5))
    assert last_checkpoint(tmp_path) is None
    assert save(tmp_path, 5) == last_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize(("limit", "left"), [(None, [2, 4, 6, 8]), (3, [2, 4, 6]), (2, [2, 6]), (1, [2, 6])])
def test_rotation_keeps_the_new_and_the_best_and_deletes_first_what_cannot_be_gone_on_from(
    limit: int | None, left: list[int], tmp_path: Path
) -> None:
    best, *_, new = (save(tmp_path, step) for step in (2, 4, 6))
    empty(save(tmp_path, 8))
    rotate_checkpoints(tmp_path, limit, {new, best})
    assert find_checkpoints(tmp_path) == [tmp_path / f"checkpoint-{step}" for step in left]


def test_a_fresh_start_clears_whole_torn_and_unfinished_checkpoints_and_no_file_of_others(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / STAGING).mkdir()
    (tmp_path / "samples").mkdir()
    for name in ("model.safetensors", "samples/best.jpg", "samples/mine.jpg"):
        (tmp_path / name).touch()
    clear_output_dir(tmp_path, ("model.safetensors", "samples/best.jpg"))
    assert [path.name for path in tmp_path.rglob("*")] == ["samples", "mine.jpg"]
