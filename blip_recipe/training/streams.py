"""Training on a stream: how many steps it takes, how far it is, and what a checkpoint keeps of that."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from blip_recipe.data.checks import SkippedRow
from blip_recipe.data.streaming import CaptionStream, Position, Progress, StreamCollator
from blip_recipe.errors import RecipeError
from blip_recipe.training.resumable import ResumableTrainer
from blip_recipe.training.stop_signals import ignore_stop_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.data import DataLoader
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from blip_recipe.training.training_arguments import BlipTrainingArguments

logger = logging.getLogger(__name__)

STREAM = "stream"
"""Where Trainer's state keeps how far streams are."""


def plan_steps(training: BlipTrainingArguments, images: int | None) -> None:
    """Make epochs steps: a stream goes on without end, and Trainer takes all of its steps for one epoch.

    Args:
        training: Trainer's arguments; `max_steps`, and what happens each epoch, are set where they are open.
        images: How many a pass has, where that is known.

    Raises:
        RecipeError: There is no telling how many steps to take, or accelerate is asked to deal out batches itself.
    """
    if training.accelerator_config.split_batches or training.accelerator_config.dispatch_batches:
        raise RecipeError(
            "accelerator_config asks for split_batches or dispatch_batches, but each process reads its own shards of a "
            "stream: leave them out."
        )
    a_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    steps = None if images is None else math.ceil(images / a_step)
    if training.max_steps <= 0:
        if steps is None:
            raise RecipeError(
                "max_steps is missing: with streaming nobody knows how many images an epoch has, unless the data set's "
                "card says so. Set max_steps (images to be seen, divided by "
                f"{a_step:,} images a step), or fetch the rows before training (in a recipe: max_train_samples)."
            )
        training.max_steps = math.ceil(training.num_train_epochs * steps)
    # Reading on where the stream stands is this module's work; Trainer would read all again.
    training.ignore_data_skip = True
    every = min(steps or training.max_steps, training.max_steps)
    if training.save_strategy == SaveStrategy.EPOCH:
        training.save_strategy, training.save_steps = SaveStrategy.STEPS, every
        if steps is None:
            logger.warning(
                "A stream of unknown length has no epochs: the only checkpoint comes after the last step, unless "
                "save_strategy is 'steps'."
            )
    if training.eval_strategy == IntervalStrategy.EPOCH:
        training.eval_strategy, training.eval_steps = IntervalStrategy.STEPS, every
    if training.logging_strategy == IntervalStrategy.EPOCH:
        training.logging_strategy, training.logging_steps = IntervalStrategy.STEPS, every


class StreamProgress:
    """How far the streams of this process are.

    Attributes:
        images: How many were trained on, by this process.
        first_images, first_captions: Those of the first pass, which are all different.
        skipped: Rows that were left out, each once.
    """

    def __init__(self, stream: CaptionStream, workers: int) -> None:
        self.stream, self.workers = stream, max(1, workers)
        self.positions: dict[int, Position] = {}
        self.next_worker = 0
        self.images, self.first_images, self.first_captions = 0, 0, 0
        self.skipped: dict[tuple[int | str, int], SkippedRow] = {}

    def update(self, batch: dict[str, Any], progress: Progress) -> None:
        """Count a batch that will be trained on."""
        self.positions[progress.worker] = progress.position
        self.next_worker = (progress.worker + 1) % self.workers
        self.images += len(batch["row"])
        self.first_images += progress.images
        self.first_captions += progress.captions
        self.skipped |= {(each.image_id, each.row): each for each in progress.skipped}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, for all processes; to be called by all."""
        mine = {
            "positions": [[worker, *position] for worker, position in sorted(self.positions.items())],
            "next_worker": self.next_worker,
            "images": [self.images, self.first_images, self.first_captions],
            "skipped": [asdict(each) for each in self.skipped.values()],
        }
        return {"workers": self.workers, "shards": self.stream.shards, "processes": gather_object([mine])}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint.

        Raises:
            RecipeError: It was made with other numbers of processes, workers or shards.
        """
        before = (len(state["processes"]), state["workers"], state["shards"])
        now = (self.stream.processes, self.workers, self.stream.shards)
        if before != now:
            names = "{} processes, {} workers (dataloader_num_workers) and {} shards"
            raise RecipeError(
                f"The checkpoint was made with {names.format(*before)}, and there are {names.format(*now)}: streams go "
                "on only with the same. Set them as they were, or start afresh with --overwrite_output_dir true."
            )
        mine = state["processes"][self.stream.process]
        self.positions = {worker: Position(*position) for worker, *position in mine["positions"]}
        self.images, self.first_images, self.first_captions = mine["images"]
        self.skipped = {(each["image_id"], each["row"]): SkippedRow(**each) for each in mine["skipped"]}
        self.next_worker = mine["next_worker"]
        self.stream.positions, self.stream.first_worker = self.positions, self.next_worker

    def totals(self, epochs: float) -> tuple[tuple[int, int], float]:
        """Different images and captions that were trained on, and passes over them; to be called by all processes.

        The passes are `epochs` within the first one over a source that does not tell how many images it has.
        """
        turns = self.stream.turns(self.workers)
        within_first = any(position.turn < turns for position in self.positions.values())
        mine = [self.images, self.first_images, self.first_captions, int(within_first)]
        images, first, captions, within = map(sum, zip(*gather_object([mine]), strict=True))
        whole = self.stream.split.images or (None if within else first)
        return (first, captions), round(images / whole, 2) if whole else epochs

    def all_skipped(self) -> list[SkippedRow]:
        """The rows that any process left out; to be called by all."""
        everyone = gather_object([list(self.skipped.values())])
        return list(dict.fromkeys(chain.from_iterable(everyone)))


def stream_loader(stream: CaptionStream, training: BlipTrainingArguments, collator: Callable[..., Any]) -> DataLoader:
    """A loader of this process's streams; accelerate, which would read all rows in each process, has no part in it."""
    workers = training.dataloader_num_workers or 0
    return torch.utils.data.DataLoader(
        stream,
        batch_size=training.train_batch_size,
        collate_fn=StreamCollator(collator),
        num_workers=workers,
        pin_memory=training.dataloader_pin_memory,
        prefetch_factor=training.dataloader_prefetch_factor,
        multiprocessing_context=training.dataloader_multiprocessing_context,
        worker_init_fn=_start_worker if workers else None,
        # Of its own: the seed of workers, which nothing depends on, would be taken from the model's random numbers.
        generator=torch.Generator(),
    )


def _start_worker(worker: int) -> None:
    ignore_stop_signals(None, worker)
    torch.set_num_threads(1)


class StreamingTrainer(ResumableTrainer):
    """`ResumableTrainer` that can train on a `CaptionStream`; nothing changes with other data sets.

    Attributes:
        progress: How far its streams are; None with other data sets.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.progress: StreamProgress | None = None
        if isinstance(self.train_dataset, CaptionStream):
            self.progress = StreamProgress(self.train_dataset, self.args.dataloader_num_workers or 0)
            self.add_callback(StreamCallback())

    def get_train_dataloader(self) -> DataLoader:
        """As Trainer's, or the loader of streams."""
        if self.progress is None:
            return super().get_train_dataloader()
        arguments = cast("BlipTrainingArguments", self.args)
        return stream_loader(self.progress.stream, arguments, cast("Callable[..., Any]", self.data_collator))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's, with streams that go on where those of the checkpoint stood."""
        kept = cast("dict[str, Any]", self.state.stateful_callbacks).get(STREAM)
        if self.progress and kept and self.state.global_step:
            self.progress.restore(kept["attributes"])
            # After the last step, an epoch of all steps would be followed by another, and another.
            self.control.should_training_stop = self.state.global_step >= self.state.max_steps
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """As Trainer's, noting how far streams are.

        Raises:
            RecipeError: A stream of any process has ended; what was trained is in a checkpoint.
        """
        if self.progress is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = list(islice(epoch_iterator, num_batches))
        reports: list[Progress] = [batch.pop("progress") for batch in batches]
        fault = next((each.fault for each in reports if each.fault), None)
        if self._any_process(fault is not None):
            self._save_before_fault()
            # The first process that ends takes the others along: each has to say what is wrong.
            raise RecipeError(next(filter(None, gather_object([fault]))))
        for batch, progress in zip(batches, reports, strict=True):
            self.progress.update(batch, progress)
        return super().get_batch_samples(iter(batches), num_batches, device)

    def _any_process(self, here: bool) -> bool:
        if self.args.world_size == 1:
            return here
        return bool(self.accelerator.gather(torch.tensor([here], device=self.args.device)).any())

    def _save_before_fault(self) -> None:
        """Save the last step, if there is one that is not saved yet."""
        step = self.state.global_step
        wanted = [step > 0 and not Path(str(self.args.output_dir), f"checkpoint-{step}").exists()]
        broadcast_object_list(wanted)
        if wanted[0]:
            self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As `ResumableTrainer`'s, with how far streams are."""
        if self.progress:
            states = cast("dict[str, Any]", self.state.stateful_callbacks)
            states[STREAM] = {"args": {}, "attributes": self.progress.state()}
        super()._save_checkpoint(model, trial)


class StreamCallback(TrainerCallback):
    """Counts on in a run that goes on: Trainer, told to skip no data, counts from nothing."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The share of the run that is done, which Trainer calls its epoch."""
        state.epoch = state.global_step / state.max_steps
