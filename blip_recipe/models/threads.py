"""Choose the number of threads of torch's operations by the size of a model.

The threads of an operation wait for each other at its end. The operations of a tiny model take microseconds, so that
several threads gain little on a quiet machine. Where another process takes one of the cores, each operation waits for
the thread that has none. `python -m benchmarks.threads` measures both.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

TINY = 10_000_000
"""Models with fewer parameters compute with one thread."""

_replaced: list[int] = []
"""The number of threads before a tiny model, while there is one thread because of it."""


def fit_threads(model: nn.Module) -> None:
    """Let a tiny model compute with one thread, and a larger one after it with as many as before.

    `OMP_NUM_THREADS` wins: if it is set, torch's threads stay as they are.

    Args:
        model: The model that is about to be trained or used.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return
    tiny = is_tiny(model)
    if tiny and not _replaced:
        _replaced.append(torch.get_num_threads())
        torch.set_num_threads(1)
    elif not tiny and _replaced:
        torch.set_num_threads(_replaced.pop())


def is_tiny(model: nn.Module) -> bool:
    """Whether a model has fewer parameters than `TINY`."""
    return sum(each.numel() for each in model.parameters()) < TINY
