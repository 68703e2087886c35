"""Share pictures between the processes of `accelerate launch` or `torchrun`.

The module does not import torch, so that `--help` is fast.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from blip_recipe.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        rank: The number of this process.
        count: The number of processes.
        device: The device of this process; None for the usual one.
    """

    rank: int = 0
    count: int = 1
    device: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process lists the work, and joins the results."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this process: every n-th."""
        return items[self.rank :: self.count]

    def broadcast(self, value: T) -> T:
        """The `value` of the main process."""
        if self.count == 1:
            return value

        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def join_processes(device: str | None) -> Processes:
    """Join the other processes, if there are any.

    Args:
        device: The device that the user asks for.

    Raises:
        RecipeError: All processes would use the same accelerator.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=device)
    if device and ":" in device:
        raise RecipeError(
            f"--device is {device}, but there are several processes: leave the number out, so that each process gets "
            "an accelerator of its own."
        )

    import torch
    from accelerate import PartialState

    # Processes wait for one another only at the end, and one may have days of work more than another.
    options: dict[str, Any] = {"timeout": timedelta(days=365)}
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), **options)
    return Processes(state.process_index, state.num_processes, str(state.device))
