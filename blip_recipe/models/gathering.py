"""Gather tensors from all processes, with or without gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from torch.nn import functional as F


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The index of this process, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate `(rows, ...)` of all processes, without gradients. All must have the same number of rows."""
    return torch.cat(_all_gather(tensor)) if world_size() > 1 else tensor.detach()


def gather_with_gradients(tensor: torch.Tensor) -> torch.Tensor:
    """Like `gather`, with gradients: those of a process's rows are summed over all processes."""
    return _Gather.apply(tensor) if world_size() > 1 else tensor  # type: ignore[no-untyped-call]


def pad_to_longest(tokens: torch.Tensor) -> torch.Tensor:
    """Pad `tokens` `(texts, tokens)` with 0 to the longest text of all processes, for `gather`."""
    if world_size() == 1:
        return tokens
    longest = torch.tensor(tokens.shape[1], device=tokens.device)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    return F.pad(tokens, (0, int(longest) - tokens.shape[1]))


def _all_gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(gathered, tensor.contiguous())
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.cat(_all_gather(tensor))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]
