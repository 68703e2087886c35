"""Choose how many threads compute an operation of torch, and how many batches are computed at once.

The threads of an operation wait for each other at its end. The operations of a tiny model take microseconds, so that
several threads gain little on a quiet machine. Where another process takes one of the cores, each operation waits for
the thread that has none. `python -m benchmarks.threads` measures both. For the same reason, two batches with one thread
each take less time than one after the other with two threads: `python -m benchmarks.folder` measures it.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from blip_recipe.data.listing import read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

Batch = TypeVar("Batch")
Result = TypeVar("Result")

TINY = 10_000_000
"""Models with fewer parameters compute with one thread."""

MOST_BATCHES = 8
"""Batches that are computed at once at most, because the pictures of all are in memory."""

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


def map_batches(
    function: Callable[[Batch], Result], batches: Iterable[Batch], model: nn.Module, count: int | None = None
) -> Iterator[tuple[Batch, Result]]:
    """Yield `(batch, function(batch))` in order; a CPU computes several batches at once, with a share of its threads.

    Until the end, `torch.get_num_threads` may give that share in other threads too.

    Args:
        function: Computes a batch with the model. It is called from several threads.
        batches: The batches, read lazily.
        model: The model. A tiny one, one in 8 bits, and one on another device have one batch at a time.
        count: The number of batches, if it is known.
    """
    threads = torch.get_num_threads()
    share = -(-threads // min(threads, MOST_BATCHES, count or MOST_BATCHES))
    at_once = threads // share
    # bitsandbytes prepares weights of 8 bits at their first use, which two threads may not do at once.
    one_at_a_time = getattr(model, "is_loaded_in_8bit", False) or is_tiny(model)
    if at_once == 1 or one_at_a_time or next(model.parameters()).device.type != "cpu":
        for batch in batches:
            yield batch, function(batch)
        return
    prepare = partial(torch.set_num_threads, share)
    try:
        # One more waits, so that a thread that is done before the first one has work.
        yield from read_ahead(function, batches, ahead=at_once, threads=at_once, prepare=prepare)
    finally:
        torch.set_num_threads(threads)
