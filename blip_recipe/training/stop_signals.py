"""Record the signals by which batch systems ask a run to stop, and keep them from the workers that read its data."""

from __future__ import annotations

import contextlib
import copy
import logging
import multiprocessing
import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess
    from types import FrameType

logger = logging.getLogger(__name__)

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)]
"""SIGTERM (Slurm, Kubernetes, preempted cloud machines), SIGUSR1 (Slurm's `--signal=USR1@120`), and Windows'
Ctrl-Break."""

JOB_SIGNALS = [*STOP_SIGNALS, signal.SIGINT]
"""Signals that are often sent to all processes of a job, as a terminal sends SIGINT at Ctrl-C."""

SECONDS_BETWEEN_LOOKS = 5.0
"""How often a worker looks whether its trainer is still there, as torch does."""

Loader = TypeVar("Loader")


class StopSignals:
    """Record the first stop signal inside a `with` block instead of ending the process.

    Attributes:
        received: The signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {each: signal.signal(each, self._on_signal) for each in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            logger.warning("%s: finishing the step and saving a checkpoint", self.received.name)


def shield_workers(loader: Loader) -> Loader:
    """Let the workers of a data loader ignore the signals that are sent to a whole job, and return the loader.

    The trainer answers these signals, and needs its workers to finish the step.
    """
    # accelerate's adapter reads attributes of the loader beneath, and does not pass on those that are set.
    inner: Any = getattr(loader, "base_dataloader", loader)
    if inner.num_workers:
        inner.worker_init_fn = partial(start_worker, inner.worker_init_fn)
        inner.multiprocessing_context = blocking_context(inner.multiprocessing_context or multiprocessing.get_context())
    return loader


def start_worker(initialise: Callable[[int], None] | None, worker: int) -> None:
    """Make this data loader worker ignore the signals of its job, except SIGTERM from its trainer.

    A worker that does not end by itself is ended by its trainer, or would keep it from ending.
    """
    trainer, ignored = multiprocessing.parent_process(), set(JOB_SIGNALS)
    if trainer and hasattr(signal, "sigtimedwait"):  # not on macOS
        # Blocked and not ignored, so that one that came during the start is not lost.
        ignored.remove(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=end_with_trainer, args=(trainer.pid, os.getppid()), daemon=True).start()
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)
    if initialise:
        initialise(worker)


def end_with_trainer(trainer: int, parent: int) -> None:
    """End this worker when `trainer` sends it SIGTERM or `parent` is gone (the trainer, or a fork server of it)."""
    while os.getppid() == parent:
        sent = signal.sigtimedwait([signal.SIGTERM], SECONDS_BETWEEN_LOOKS)
        if sent and sent.si_pid == trainer:
            break
    os._exit(0)


def blocking_context(context: BaseContext) -> BaseContext:
    """A copy of `context` whose processes start with the signals of the job blocked.

    A new worker takes milliseconds, or seconds if it is not forked, until it ignores them.
    """

    def create(**arguments: Any) -> BaseProcess:
        process = context.Process(**arguments)  # type: ignore[attr-defined]
        process.start = partial(start_blocked, process)  # type: ignore[method-assign]
        return process

    blocking = copy.copy(context)
    blocking.Process = create  # type: ignore[attr-defined]
    return blocking


def start_blocked(process: BaseProcess) -> None:
    """Start a process, which inherits that the signals of the job are blocked."""
    del process.start  # type: ignore[method-assign]  # the class's own; a process that is not forked is pickled
    with blocked(JOB_SIGNALS):
        process.start()


@contextlib.contextmanager
def blocked(signals: list[signal.Signals]) -> Iterator[None]:
    """Hold `signals` back until the end of the `with` block, where the system can."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
