"""A job of several processes ends when one of them dies, and stops and goes on as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import CHECKOUT, run_checked

KEYS = {
    "max_steps": 40,
    "max_train_samples": 64,
    "max_eval_samples": 4,
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": "false",
    "dataloader_num_workers": 0,
    "use_cpu": "true",
    "logging_steps": 1,
}
PATIENCE = 240
"""Seconds until a job must have got somewhere, on a busy machine."""


@contextmanager
def job(output_dir: Path, *options: str, **changes: object) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Two processes under `torchrun`, and the file that their output goes to."""
    keys = KEYS | changes | {"output_dir": output_dir}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *options]
    command += ["-m", "blip_recipe.finetune", "recipes/shapes_tiny.json", *(f"--{k}={v}" for k, v in keys.items())]
    log = output_dir.with_suffix(".log")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, stdout=file, stderr=file, text=True, cwd=CHECKOUT, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_steps(process: subprocess.Popen[str], log: Path) -> None:
    """Until the job has taken a few steps."""
    end = time.monotonic() + PATIENCE
    while "'loss'" not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


def workers_of(launcher: int) -> list[int]:
    """The processes that `torchrun` has started."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a job in /proc")
def test_a_process_that_dies_ends_the_job_with_a_message(tmp_path: Path) -> None:
    with job(tmp_path / "run", max_steps=100_000) as (process, log):
        wait_for_steps(process, log)
        os.kill(workers_of(process.pid)[1], signal.SIGKILL)
        assert process.wait(PATIENCE) != 0
    assert "SIGKILL" in log.read_text()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 here")
def test_a_warned_job_saves_once_and_goes_on(tmp_path: Path) -> None:
    handled = ("--signals-to-handle", "SIGTERM,SIGUSR1", "--shutdown-timeout", "200")
    with job(tmp_path / "run", *handled, dataloader_num_workers=1) as (process, log):
        wait_for_steps(process, log)
        os.killpg(process.pid, signal.SIGUSR1)
        assert process.wait(PATIENCE) != 0
    saved = [path.name for path in (tmp_path / "run").glob("checkpoint-*")]
    assert len(saved) == 1, log.read_text()[-3000:]
    steps = int(saved[0].removeprefix("checkpoint-"))
    assert 0 < steps < 40
    keys = KEYS | {"output_dir": tmp_path / "run"}
    words = ("recipes/shapes_tiny.json", *(f"--{key}={value}" for key, value in keys.items()))
    run_checked("blip_recipe.finetune", *words, processes=2)
    state = json.loads((tmp_path / "run/trainer_state.json").read_text())
    assert state["global_step"] == 40
    assert len((tmp_path / "run/predictions.jsonl").read_text().splitlines()) == 4
