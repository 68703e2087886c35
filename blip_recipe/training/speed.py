"""Measure the tokens per second of a training, and the share of its time that it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from blip_recipe.training.streams import StreamingTrainer

TEXTS = ("input_ids", "decoder_input_ids")
"""The keys of a batch that hold token ids."""


class Stopwatch:
    """Measures the time between two log lines, without the time of evaluations and checkpoints.

    Attributes:
        waited: Seconds spent waiting for batches.
        tokens: Text tokens of the batches, without padding.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._paused = 0.0
        self.waited = 0.0
        self.tokens: torch.Tensor | int = 0

    def start(self) -> None:
        """Begin to measure, unless it has begun."""
        if self._began is None:
            self._began = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time of a block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.is_running:
                self._paused += time.perf_counter() - began

    def time_waits(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time until each of them is there is counted."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    @property
    def is_running(self) -> bool:
        """Whether a batch has been asked for."""
        return self._began is not None

    def lap(self) -> tuple[float, float, float]:
        """Seconds, seconds of waiting and tokens since the last lap; a new one begins."""
        now = time.perf_counter()
        began = now if self._began is None else self._began
        found = now - began - self._paused, self.waited, float(self.tokens)
        self._began, self._paused, self.waited, self.tokens = now, 0.0, 0.0, 0
        return found


class TimedTrainer(StreamingTrainer):
    """A trainer whose log lines have `tokens_per_second` and `data_wait_share`.

    `tokens_per_second` counts the text tokens of the batches of all processes, without padding. `data_wait_share` is
    the mean over the processes of the share of time that they wait for batches: near 0, the data loader is fast enough.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stopwatch = Stopwatch()
        super().__init__(*args, **kwargs)

    def count_tokens(self, batch: dict[str, Any]) -> torch.Tensor | int:
        """The number of text tokens of a batch, without padding; 0 leaves `tokens_per_second` out of log lines."""
        padding = self.processing_class.tokenizer.pad_token_id  # type: ignore[union-attr]
        return sum(((batch[name] != padding).sum() for name in TEXTS if name in batch), torch.tensor(0))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Like Trainer's, with a new measurement."""
        self.stopwatch = Stopwatch()
        return super().train(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Like Trainer's, and counts the tokens of the batches and the time until they are there."""
        self.stopwatch.start()
        batches, items = super().get_batch_samples(self.stopwatch.time_waits(epoch_iterator), num_batches, device)
        for batch in batches:
            self.stopwatch.tokens = self.stopwatch.tokens + self.count_tokens(batch)
        return batches, items

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Like Trainer's, with the speed since the last log line."""
        if {"loss", "learning_rate"} <= logs.keys() and self.stopwatch.is_running:
            logs = logs | self._speed()
        super().log(logs, *args, **kwargs)

    def _speed(self) -> dict[str, float]:
        """The speed of all processes since the last log line. All processes must call it."""
        seconds, waited, tokens = self.stopwatch.lap()
        mine = torch.tensor([tokens / seconds, waited / seconds], dtype=torch.float32, device=self.args.device)
        rate, share = self.accelerator.reduce(mine, "sum").tolist()
        found = {"tokens_per_second": round(rate, 1)} if rate else {}
        return found | {"data_wait_share": round(share / self.accelerator.num_processes, 4)}

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Like Trainer's, outside of the measured time."""
        with self.stopwatch.pause():
            return super()._evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Like Trainer's, outside of the measured time."""
        with self.stopwatch.pause():
            super()._save_checkpoint(model, trial)
