"""Record statistics of training for its log lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class MeanRecord(TrainerCallback, ExportableState):
    """Average statistics between two log lines; saved in checkpoints.

    Attributes:
        sums: Sums over the images of all processes, by name; `images` is their number.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"args": {}, "attributes": {"sums": dict(self.sums)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the state of the checkpoint."""
        saved: dict[str, Any] = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        self.sums = dict(saved.get("attributes", {}).get("sums", {}))

    def add(self, sums: dict[str, float]) -> None:
        """Add the sums of a batch."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}

    def pop_means(self) -> dict[str, float]:
        """Return the means and reset the sums."""
        images = self.sums.pop("images", 0.0)
        means = {name: value / images for name, value in self.sums.items()}
        self.sums = {}
        return means
