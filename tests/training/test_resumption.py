"""A run that stops or finds no room goes on to the same end; another recipe, and a finished run, are left alone."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from captioners import save_captioner
from kills import RECIPE, read_result, write_pictures
from safetensors.torch import load_file
from transformers import TrainerCallback

from blip_recipe.data.storage import write_json
from blip_recipe.errors import RecipeError, SaveError, StoppedError, run_command
from blip_recipe.finetune import main
from blip_recipe.recipe import job
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.output_dir import RUN, Run, find_run
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.training.checkpoints import MANIFEST, STAGING, checksum, find_checkpoints, last_checkpoint
from blip_recipe.training.trainer import BlipTrainer

KILOBYTE = 1024


class Signal(TrainerCallback):
    """Sends this process a signal at an event of a step."""

    def __init__(self, event: str, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number
        setattr(self, event, self._send)

    def _send(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(self.number)


@pytest.fixture(scope="module", name="place")
def fixture_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a base model with dropout."""
    place = tmp_path_factory.mktemp("resumption")
    write_pictures(place / "pictures")
    save_captioner(place / "base")
    config = json.loads((place / "base" / "config.json").read_text())
    config["text_config"] |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (place / "base" / "config.json").write_text(json.dumps(config))
    return place


def write_recipe(place: Path, output_dir: Path, **keys: Any) -> Path:
    """The recipe of the kills, without workers and without a Hub."""
    own = {
        "model_name_or_path": str(place / "base"),
        "dataset_name": str(place / "pictures"),
        "output_dir": str(output_dir),
        "push_to_hub": False,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "num_train_epochs": 1.5,
    }
    path = output_dir.with_suffix(".json")
    path.write_text(json.dumps(RECIPE | own | keys))
    return path


def build(place: Path, output_dir: Path, *callbacks: TrainerCallback, **keys: Any) -> BlipTrainer:
    """A trainer as the command builds it."""
    from blip_recipe.data.load import load_splits
    from blip_recipe.recipe.building import build_model

    file = write_recipe(place, output_dir, **keys)
    recipe = read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=[str(file)])
    splits = load_splits(recipe.data, recipe.task.load_split)
    model, processor = build_model(recipe, splits["train"])
    return recipe.trainer(
        model,
        recipe.training,
        splits["train"],
        splits["eval"],
        processing_class=processor,
        callbacks=list(callbacks),
    )


def train(place: Path, output_dir: Path, *callbacks: TrainerCallback, **keys: Any) -> BlipTrainer:
    """Train from the newest whole checkpoint."""
    trainer = build(place, output_dir, *callbacks, **keys)
    checkpoint = last_checkpoint(output_dir)
    with trainer.stop_signals:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def what_was_learnt(trainer: BlipTrainer) -> tuple[bytes, list[dict[str, float]]]:
    """The weights to the bit, and the curves without what they took."""
    weights = b"".join(weight.numpy().tobytes() for weight in trainer.model.state_dict().values())
    times = ("runtime", "per_second", "preparation_time", "wait_share")
    curves = [
        {key: value for key, value in entry.items() if not key.endswith(times)} for entry in trainer.state.log_history
    ]
    return weights, curves


@pytest.fixture(scope="module", name="unbroken")
def fixture_unbroken(place: Path) -> BlipTrainer:
    """A training that nobody stopped."""
    return train(place, place / "unbroken")


@pytest.mark.parametrize(
    ("event", "step", "received", "saved"),
    [
        ("on_step_begin", 3, signal.SIGTERM, 4),
        ("on_prediction_step", 3, signal.SIGUSR1, 3),
        ("on_step_begin", 5, signal.SIGTERM, 6),
    ],
    ids=["in a step", "in an evaluation", "in an epoch's last step, before an evaluation"],
)
def test_a_run_that_is_asked_to_stop_saves_what_it_has_and_goes_on_as_if_it_had_not(
    event: str, step: int, received: signal.Signals, saved: int, place: Path, unbroken: BlipTrainer, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError, match=received.name) as stopped:
        train(place, tmp_path / "run", Signal(event, step, received))
    assert stopped.value.exit_code == 128 + received
    assert last_checkpoint(tmp_path / "run") == tmp_path / "run" / f"checkpoint-{saved}"
    assert what_was_learnt(train(place, tmp_path / "run")) == what_was_learnt(unbroken)


def test_a_signal_after_the_last_step_loses_nothing(place: Path, unbroken: BlipTrainer, tmp_path: Path) -> None:
    last = unbroken.state.max_steps
    with pytest.raises(StoppedError):
        train(place, tmp_path / "run", Signal("on_prediction_step", last, signal.SIGTERM))
    assert what_was_learnt(train(place, tmp_path / "run")) == what_was_learnt(unbroken)
    # Nor is a step too many taken from the last checkpoint.
    assert what_was_learnt(train(place, tmp_path / "run")) == what_was_learnt(unbroken)


@pytest.mark.parametrize(
    "keys",
    [
        {"train_sampling_strategy": "group_by_length"},
        {"freeze_vision": True, "augmentation": "none", "cache_image_embeds": True},
    ],
    ids=["rows grouped by length", "pictures encoded once"],
)
def test_within_a_later_epoch_too_a_run_goes_on_as_if_it_had_not_stopped(
    keys: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    keys = keys | {"eval_strategy": "no", "load_best_model_at_end": False}
    with pytest.raises(StoppedError):
        train(place, tmp_path / "run", Signal("on_step_begin", 7, signal.SIGTERM), **keys)
    resumed, unbroken = (train(place, tmp_path / name, **keys) for name in ("run", "unbroken"))
    assert what_was_learnt(resumed) == what_was_learnt(unbroken)


def test_training_does_not_depend_on_how_often_it_is_evaluated(
    place: Path, unbroken: BlipTrainer, tmp_path: Path
) -> None:
    plain = {"eval_strategy": "no", "load_best_model_at_end": False, "dataloader_num_workers": 1}
    train(place, tmp_path / "run", **plain)
    step = unbroken.state.max_steps
    weights = [
        load_file(folder / f"checkpoint-{step}/model.safetensors") for folder in (tmp_path / "run", place / "unbroken")
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])


def test_a_checkpoint_of_an_epochs_last_step_has_the_scores_of_its_end(place: Path, tmp_path: Path) -> None:
    keys = {"eval_strategy": "epoch", "load_best_model_at_end": False}
    train(place, tmp_path / "run", save_steps=2, save_total_limit=9, **keys)
    for checkpoint, scored in (("checkpoint-6", [6]), ("checkpoint-9", [6, 9])):
        state = json.loads((tmp_path / "run" / checkpoint / "trainer_state.json").read_text())
        assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry] == scored


def test_one_checkpoint_is_enough_to_end_well(place: Path, unbroken: BlipTrainer, tmp_path: Path) -> None:
    for event, step in (("on_step_begin", 3), ("on_step_begin", 6)):
        with pytest.raises(StoppedError):
            train(place, tmp_path / "run", Signal(event, step, signal.SIGTERM), save_total_limit=1)
    assert what_was_learnt(train(place, tmp_path / "run", save_total_limit=1)) == what_was_learnt(unbroken)
    last, best = unbroken.state.max_steps, unbroken.state.best_global_step or 0
    assert find_checkpoints(tmp_path / "run") == [tmp_path / "run" / f"checkpoint-{n}" for n in sorted({last, best})]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_cannot_run_code(name: str, place: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(place / "unbroken", tmp_path / "run")
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    (checkpoint / name).write_bytes(pickle.dumps(Evil(tmp_path / "was here")))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][name] = {"sha256": checksum(checkpoint / name), "size": (checkpoint / name).stat().st_size}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    assert last_checkpoint(tmp_path / "run") == checkpoint
    with pytest.raises(pickle.UnpicklingError):
        train(place, tmp_path / "run", num_train_epochs=4)
    assert not (tmp_path / "was here").exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does, without filling one."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_stopped_command_ends_with_128_and_the_signal_as_a_shell_counts(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        raise StoppedError(signal.SIGTERM)

    with pytest.raises(SystemExit, match=r"^143$"):
        run_command(stopped)
    said = "stopped by SIGTERM: run the same command again to resume from the last checkpoint\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("size", [200 * KILOBYTE, 8000 * KILOBYTE], ids=["weights", "optimiser"])
def test_a_full_disk_ends_the_run_with_one_message_and_earlier_checkpoints_are_whole(
    size: int, place: Path, unbroken: BlipTrainer, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        train(place, tmp_path / "run", Signal("on_step_begin", 3, signal.SIGTERM))
    before = last_checkpoint(tmp_path / "run")
    assert before is not None
    assert (before / "model.safetensors").stat().st_size < 8000 * KILOBYTE < (before / "optimizer.pt").stat().st_size
    with (
        files_of_at_most(size),
        pytest.raises(SaveError, match=r"step 6 could not be saved .* GiB are free: .*(too large|completely)"),
    ):
        train(place, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run") == before
    assert not (tmp_path / "run" / STAGING).exists()
    assert what_was_learnt(train(place, tmp_path / "run")) == what_was_learnt(unbroken)


# The command


def test_a_run_that_kept_nothing_may_be_changed_and_one_with_a_checkpoint_may_not(place: Path, tmp_path: Path) -> None:
    def find(**keys: Any) -> Run:
        file = write_recipe(place, tmp_path / "run", **keys)
        return find_run(read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=[str(file)]))

    write_json(tmp_path / "run" / RUN, {"given": RECIPE | {"seed": 5}, "finished": False})
    assert find(per_device_train_batch_size=1) == Run({})
    (tmp_path / "run" / "checkpoint-3").mkdir()
    with pytest.raises(RecipeError, match="per_device_train_batch_size"):
        find(per_device_train_batch_size=1)


def test_another_recipe_is_refused_and_a_finished_run_only_says_that_it_is(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output_dir = tmp_path / "run"
    quick = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    main([str(write_recipe(place, output_dir, **quick))])
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
    with pytest.raises(RecipeError, match=r"differs in learning_rate \(was 0.001, is 0.002\), seed \(was 42, is 1\)\."):
        main([str(write_recipe(place, output_dir, **quick, learning_rate=0.002, seed=1))])
    with caplog.at_level(logging.INFO, "blip_recipe"):
        main([str(write_recipe(place, output_dir, **quick | {"logging_steps": 2, "seed": 42}))])
    assert any("holds the finished run" in line for line in caplog.messages)
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before
    weights = read_result(output_dir)["weights"]
    texts = output_dir / "baseline_predictions.jsonl"
    whole = texts.read_bytes()
    texts.write_bytes(b'{"of": "another run"}\n')
    main([str(write_recipe(place, output_dir, **quick, learning_rate=0.002)), "--overwrite_output_dir", "true"])
    assert read_result(output_dir)["weights"] != weights
    assert texts.read_bytes() == whole


def test_a_run_goes_on_with_the_texts_of_the_base_model_if_they_and_their_scores_are_there(
    place: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    file = write_recipe(place, output_dir)
    recipe = read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=[str(file)])
    trainer = build(place, output_dir)
    rows = trainer.eval_dataset.rows
    splits, run = job.Splits({"train": rows, "eval": rows}, []), Run({"seed": 5})
    texts = output_dir / "baseline_predictions.jsonl"
    job.score_baseline(trainer, recipe, splits, Run({}))
    whole = texts.read_bytes()
    assert len(whole.splitlines()) == len(rows)
    texts.write_bytes(b"kept\n")
    job.score_baseline(trainer, recipe, splits, run)
    assert texts.read_bytes() == b"kept\n"
    texts.unlink()
    job.score_baseline(trainer, recipe, splits, run)
    assert texts.read_bytes() == whole
    job.score_baseline(trainer, recipe, job.Splits({"train": rows}, []), Run({}))
    assert not texts.exists()
