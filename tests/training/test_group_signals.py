"""Signals to a whole job, as Slurm, `timeout` and Ctrl-C send them, stop its trainer and not the workers it needs."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from captioners import save_captioner
from commands import Process, ranks, run_code, run_script, start_module
from kills import write_pictures

from blip_recipe.training.checkpoints import last_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups here")

PATIENCE = 120
"""Seconds until a job must have got somewhere, on a busy machine."""

STEPS = 40

UNBUFFERED = {"PYTHONUNBUFFERED": "1"}

RECIPE: dict[str, Any] = {
    "model_name_or_path": "tiny",
    "dataset_name": "shapes",
    "augmentation": "none",
    "max_train_samples": 64,
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
    "dataloader_num_workers": 2,
    "use_cpu": True,
    "logging_steps": 1,
    "disable_tqdm": True,
}
EVALUATED: dict[str, Any] = {
    "eval_split": "validation",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "max_eval_samples": 30,
    "per_device_eval_batch_size": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    "captioning": {"captions_per_image": 1},
    "scst": {
        "stage": "scst",
        "captions_per_image": 1,
        "model_name_or_path": "{place}/base",
        "generation_max_length": 12,
    },
    "vqa": {"task": "vqa"},
    "retrieval": {"task": "retrieval", "queue_size": 0, "rerank_top_k": 4},
    "stream": {"dataset_name": "{place}/pictures", "streaming": True, "max_train_samples": None},
}


@pytest.fixture(scope="module", name="place")
def fixture_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures to stream, and a captioner to continue."""
    place = tmp_path_factory.mktemp("signals")
    write_pictures(place / "pictures")
    save_captioner(place / "base")
    return place


class Job:
    """A job of the command, each process in a session of its own, which writes what it says to one file."""

    def __init__(self, place: Path, folder: Path, processes: Any = 1, **keys: Any) -> None:
        self.output_dir, self.log, self.processes = folder / "run", folder / "log", processes
        self.recipe = folder / "recipe.json"
        recipe = RECIPE | {"output_dir": str(self.output_dir)} | keys
        self.recipe.write_text(json.dumps(recipe).replace("{place}", str(place)))
        self.started: list[Process] = []

    def start(self) -> None:
        """Start it, or start it again."""
        self.log.write_text("")
        self.started = [
            start_module("blip_recipe.finetune", self.recipe, env=rank | UNBUFFERED, log=self.log, alone=True)
            for rank in ranks(self.processes)
        ]

    def said(self) -> str:
        """What it has said."""
        return self.log.read_text(errors="replace")

    def wait_until(self, begun: Callable[[], bool]) -> None:
        """Until something has begun."""
        end = time.monotonic() + PATIENCE
        while not begun():
            assert all(process.poll() is None for process in self.started), self.said()[-3000:]
            assert time.monotonic() < end, self.said()[-3000:]
            time.sleep(0.005)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes, workers included."""
        for process in self.started:
            os.killpg(process.pid, number)

    def wait(self) -> list[int]:
        """The exit codes."""
        return [process.wait(PATIENCE) for process in self.started]

    def stop_in_a_step(self, number: signal.Signals) -> list[int]:
        """Start it, and send a signal after the first step; returns the exit codes."""
        self.start()
        self.wait_until(lambda: "'loss'" in self.said())
        self.send(number)
        return self.wait()

    def steps(self) -> int:
        """The step of the newest whole checkpoint."""
        checkpoint = last_checkpoint(self.output_dir)
        return int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0


def is_left(group: int) -> bool:
    """Whether a process of the group is still there after a while, beside those that only nobody has waited for."""
    end = time.monotonic() + 10
    while any(
        each.info["status"] != psutil.STATUS_ZOMBIE and group_of(each.pid) == group
        for each in psutil.process_iter(["status"])
    ):
        if time.monotonic() > end:
            return True
        time.sleep(0.05)
    return False


def group_of(pid: int) -> int | None:
    """The process group of a process, if it is still there."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def check_stopped_well(job: Job, codes: list[int]) -> None:
    """A whole checkpoint within the run, no traceback, and no process left."""
    assert codes == [143] * job.processes, job.said()[-3000:]
    assert "Traceback" not in job.said()
    assert "stopped by SIGTERM: run the same command again" in job.said()
    assert 0 < job.steps() < STEPS
    assert not any(is_left(process.pid) for process in job.started)


def one_of_each_path(kinds: Iterable[str]) -> list[Any]:
    """The kinds as parameters; tasks that stop as captioning does are long."""
    return [pytest.param(kind, marks=pytest.mark.long if kind in ("vqa", "retrieval") else ()) for kind in kinds]


@pytest.mark.parametrize("kind", one_of_each_path(KINDS))
def test_a_job_that_is_told_to_end_saves_and_goes_on(kind: str, place: Path, tmp_path: Path) -> None:
    job = Job(place, tmp_path, **KINDS[kind])
    check_stopped_well(job, job.stop_in_a_step(signal.SIGTERM))
    saved = job.steps()
    job.start()
    assert job.wait() == [0], job.said()[-3000:]
    state = json.loads((job.output_dir / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == list(range(1, STEPS + 1))
    assert job.said().count("{'loss'") == STEPS - saved


@pytest.mark.parametrize("kind", [pytest.param("captioning", marks=pytest.mark.long), "stream"])
def test_a_job_of_two_processes_does_so_too(kind: str, place: Path, tmp_path: Path) -> None:
    job = Job(place, tmp_path, processes=2, **KINDS[kind])
    check_stopped_well(job, job.stop_in_a_step(signal.SIGTERM))


@pytest.mark.long  # a stop in a step is the small version
@pytest.mark.parametrize("kind", ["captioning", "vqa", "retrieval"])
def test_a_job_does_so_in_an_evaluation_too(kind: str, place: Path, tmp_path: Path) -> None:
    job = Job(place, tmp_path, **KINDS[kind], **EVALUATED)
    job.start()
    # The first loss is logged before the evaluation of its step, which reads pictures for a second or more.
    job.wait_until(lambda: "'loss'" in job.said())
    time.sleep(0.1)
    job.send(signal.SIGTERM)
    check_stopped_well(job, job.wait())


def test_a_warning_signal_to_the_job_saves_too(place: Path, tmp_path: Path) -> None:
    job = Job(place, tmp_path, **KINDS["captioning"])
    assert job.stop_in_a_step(signal.SIGUSR1) == [128 + signal.SIGUSR1], job.said()[-3000:]
    assert job.steps() > 0
    assert "Traceback" not in job.said()


def test_ctrl_c_ends_the_job_with_one_line_and_earlier_checkpoints(place: Path, tmp_path: Path) -> None:
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    job = Job(place, tmp_path, **KINDS["captioning"], **saved)
    job.start()
    job.wait_until(lambda: job.steps() > 1)
    job.send(signal.SIGINT)
    assert job.wait() == [130], job.said()[-3000:]
    assert job.steps() > 1
    assert "Traceback" not in job.said()
    assert job.said().splitlines()[-1] == "error: interrupted"
    assert not is_left(job.started[0].pid)


LOADER = """
    import os, signal, sys, time
    from torch.utils.data import DataLoader
    from blip_recipe.training import stop_signals

    class Slow:
        def __init__(self, rows, seconds):
            self.rows, self.seconds = rows, seconds
        def __len__(self):
            return self.rows
        def __getitem__(self, row):
            time.sleep(self.seconds)
            return row

    def loader(rows, seconds, **options):
        return stop_signals.shield_workers(DataLoader(Slow(rows, seconds), num_workers=2, **options))
"""


def run_loader(code: str, *words: str) -> Any:
    """Run a script in which `loader(rows, seconds)` gives a loader of two workers."""
    return run_code(textwrap.dedent(LOADER) + textwrap.dedent(code), *words)


@pytest.mark.parametrize("method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.long)])
def test_workers_read_on_whenever_signals_come(method: str, tmp_path: Path) -> None:
    """From the moment that the workers are started, whichever way."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(LOADER)
        + textwrap.dedent("""
        import threading

        def send(worker_signals):
            for number in worker_signals:
                os.killpg(0, number)
                time.sleep(0.02)

        if __name__ == "__main__":
            os.setsid()
            for number in stop_signals.JOB_SIGNALS:
                signal.signal(number, lambda *_: None)
            read = []
            # Another process sends, as the workers obey a SIGTERM of their trainer.
            sender = os.fork()
            if sender == 0:
                send(stop_signals.JOB_SIGNALS * 20)
                os._exit(0)
            for _ in range(2):
                read += [int(row) for batch in loader(20, 0.005, multiprocessing_context=sys.argv[1]) for row in batch]
            os.waitpid(sender, 0)
            print(read == [*range(20)] * 2)
    """)
    )
    assert run_script(script, method, env=dict(os.environ)).strip() == "True"


def test_a_worker_that_never_ends_does_not_keep_its_trainer() -> None:
    started = time.monotonic()
    done = run_loader("""
        rows = iter(loader(8, 0.0))
        next(rows)
        stuck = iter(loader(8, 1000.0))
        time.sleep(0.2)
        print("ends")
    """)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr
    assert time.monotonic() - started < PATIENCE


def test_workers_end_with_a_trainer_that_was_killed() -> None:
    """Even one that is stuck: torch's own watchdog looks between rows only."""
    done = run_loader("""
        stop_signals.SECONDS_BETWEEN_LOOKS = 0.2
        rows = iter(loader(8, 1000.0))
        time.sleep(0.2)
        print(*(worker.pid for worker in rows._workers), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    end = time.monotonic() + PATIENCE
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)
