"""Record the signals by which batch systems ask a run to stop."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

logger = logging.getLogger(__name__)

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)]
"""SIGTERM (Slurm, Kubernetes, preempted cloud machines), SIGUSR1 (Slurm's `--signal=USR1@120`), and Windows'
Ctrl-Break."""


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


def ignore_stop_signals(initialise: Callable[[int], None] | None, worker: int) -> None:
    """Make a data loader worker ignore stop signals, which are often sent to all processes of a job."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if initialise:
        initialise(worker)
