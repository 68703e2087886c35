"""Train on streamed data sets: plan the steps, track the position, save and restore it."""

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
from blip_recipe.data.streaming import PictureStream, Position, Progress, StreamCollator
from blip_recipe.errors import RecipeError
from blip_recipe.training.resumable import ResumableTrainer
from blip_recipe.training.stop_signals import shield_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.data import DataLoader
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from blip_recipe.training.training_arguments import BlipTrainingArguments

logger = logging.getLogger(__name__)

STREAM = "stream"
"""The key of the Trainer state under which the positions of streams are saved."""


def plan_steps(training: BlipTrainingArguments, images: int | None) -> None:
    """Convert epochs to steps: a stream never ends, so Trainer sees the whole run as one epoch.

    Args:
        training: The training arguments. `max_steps` is set if it is missing; epoch strategies become step strategies.
            `steps_per_pass` becomes the number of steps of a pass, or of the whole run if that is unknown.
        images: Images per pass over the data, if known.

    Raises:
        RecipeError: The number of steps is unknown, or `accelerator_config` splits or dispatches batches.
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
                "max_steps is missing: the number of images of a streamed data set is unknown, unless its card states "
                f"it. Set max_steps (images to train on, divided by {a_step:,} images per step), or load the rows "
                "before training (in a recipe: max_train_samples)."
            )
        training.max_steps = math.ceil(training.num_train_epochs * steps)
    training.steps_per_pass = steps or training.max_steps
    # This module restores the position of the stream; Trainer would read and skip all rows.
    training.ignore_data_skip = True
    every = min(steps or training.max_steps, training.max_steps)
    if training.save_strategy == SaveStrategy.EPOCH:
        training.save_strategy, training.save_steps = SaveStrategy.STEPS, every
        if steps is None:
            logger.warning(
                "A stream of unknown length has no epochs: the only checkpoint is written after the last step, unless "
                "save_strategy is 'steps'."
            )
    if training.eval_strategy == IntervalStrategy.EPOCH:
        training.eval_strategy, training.eval_steps = IntervalStrategy.STEPS, every
    if training.logging_strategy == IntervalStrategy.EPOCH:
        training.logging_strategy, training.logging_steps = IntervalStrategy.STEPS, every


class StreamProgress:
    """The positions of the streams of this process.

    Attributes:
        images: Images, or questions about them, that this process has trained on.
        first_images, first_texts: Images and texts of the first pass, which are all different.
        skipped: Skipped rows, without duplicates.
    """

    def __init__(self, stream: PictureStream, workers: int) -> None:
        self.stream, self.workers = stream, max(1, workers)
        self.positions: dict[int, Position] = {}
        self.next_worker = 0
        self.images, self.first_images, self.first_texts = 0, 0, 0
        self.skipped: dict[tuple[int | str, int], SkippedRow] = {}

    def update(self, batch: dict[str, Any], progress: Progress) -> None:
        """Count a batch of the training."""
        self.positions[progress.worker] = progress.position
        self.next_worker = (progress.worker + 1) % self.workers
        self.images += len(batch["row"])
        self.first_images += progress.images
        self.first_texts += progress.texts
        self.skipped |= {(each.image_id, each.row): each for each in progress.skipped}

    def state(self) -> dict[str, Any]:
        """The state of all processes, for a checkpoint. All processes must call it."""
        mine = {
            "positions": [[worker, *position] for worker, position in sorted(self.positions.items())],
            "next_worker": self.next_worker,
            "images": [self.images, self.first_images, self.first_texts],
            "skipped": [asdict(each) for each in self.skipped.values()],
        }
        return {"workers": self.workers, "shards": self.stream.shards, "processes": gather_object([mine])}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            RecipeError: The number of processes, workers or shards has changed.
        """
        before = (len(state["processes"]), state["workers"], state["shards"])
        now = (self.stream.processes, self.workers, self.stream.shards)
        if before != now:
            names = "{} processes, {} workers (dataloader_num_workers) and {} shards"
            raise RecipeError(
                f"The checkpoint was written with {names.format(*before)}, but this run has {names.format(*now)}: a "
                "stream resumes only with the same numbers. Set them as before, or train into an empty output_dir."
            )
        mine = state["processes"][self.stream.process]
        self.positions = {worker: Position(*position) for worker, *position in mine["positions"]}
        self.images, self.first_images, self.first_texts = mine["images"]
        self.skipped = {(each["image_id"], each["row"]): SkippedRow(**each) for each in mine["skipped"]}
        self.next_worker = mine["next_worker"]
        self.stream.positions, self.stream.first_worker = self.positions, self.next_worker

    def totals(self, epochs: float) -> tuple[tuple[int, int], float]:
        """Numbers of different images and texts that were trained on, and of passes over them.

        During the first pass over a source of unknown length, the number of passes is `epochs`. All processes must call
        it.
        """
        turns = self.stream.turns(self.workers)
        within_first = any(position.turn < turns for position in self.positions.values())
        mine = [self.images, self.first_images, self.first_texts, int(within_first)]
        images, first, captions, within = map(sum, zip(*gather_object([mine]), strict=True))
        whole = self.stream.split.images or (None if within else first)
        return (first, captions), round(images / whole, 2) if whole else epochs

    def all_skipped(self) -> list[SkippedRow]:
        """The skipped rows of all processes. All processes must call it."""
        everyone = gather_object([list(self.skipped.values())])
        return list(dict.fromkeys(chain.from_iterable(everyone)))


def stream_loader(stream: PictureStream, training: BlipTrainingArguments, collator: Callable[..., Any]) -> DataLoader:
    """The data loader of this process's streams; accelerate does not wrap it, to read only this process's rows."""
    loader = torch.utils.data.DataLoader(
        stream,
        batch_size=training.train_batch_size,
        collate_fn=StreamCollator(collator),
        num_workers=training.dataloader_num_workers or 0,
        pin_memory=training.dataloader_pin_memory,
        prefetch_factor=training.dataloader_prefetch_factor,
        multiprocessing_context=training.dataloader_multiprocessing_context,
        # Without its own generator, the loader would draw the seed of its workers from the model's random state.
        generator=torch.Generator(),
    )
    return shield_workers(loader)


class StreamingTrainer(ResumableTrainer):
    """`ResumableTrainer` that can also train on a `PictureStream`.

    Attributes:
        progress: The positions of its streams; None with other data sets.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.progress: StreamProgress | None = None
        if isinstance(self.train_dataset, PictureStream):
            self.progress = StreamProgress(self.train_dataset, self.args.dataloader_num_workers or 0)
            self.add_callback(StreamCallback())

    @property
    def finished_epochs(self) -> float:
        """The epochs that are finished; of a stream, the passes."""
        if self.progress is None:
            return float(self.state.epoch or 0)
        return self.state.global_step / cast("BlipTrainingArguments", self.args).steps_per_pass

    def get_train_dataloader(self) -> DataLoader:
        """Like Trainer's; for a stream, the loader of `stream_loader`."""
        if self.progress is None:
            return super().get_train_dataloader()
        arguments = cast("BlipTrainingArguments", self.args)
        return stream_loader(self.progress.stream, arguments, cast("Callable[..., Any]", self.data_collator))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Like Trainer's, but restores the positions of streams from the checkpoint."""
        kept = cast("dict[str, Any]", self.state.stateful_callbacks).get(STREAM)
        if self.progress and kept and self.state.global_step:
            self.progress.restore(kept["attributes"])
            # A stream never ends, so a run resumed after its last step would go on training.
            self.control.should_training_stop = self.state.global_step >= self.state.max_steps
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Like Trainer's, and updates the positions of streams.

        Raises:
            RecipeError: The stream of a process has failed. A checkpoint was saved before.
        """
        if self.progress is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = list(islice(epoch_iterator, num_batches))
        reports: list[Progress] = [batch.pop("progress") for batch in batches]
        fault = next((each.fault for each in reports if each.fault), None)
        if self._any_process(fault is not None):
            self._save_before_fault()
            # The launcher stops all processes when the first one ends, so each of them raises the message.
            raise RecipeError(next(filter(None, gather_object([fault]))))
        for batch, progress in zip(batches, reports, strict=True):
            self.progress.update(batch, progress)
        return super().get_batch_samples(iter(batches), num_batches, device)

    def _any_process(self, here: bool) -> bool:
        if self.args.world_size == 1:
            return here
        return bool(self.accelerator.gather(torch.tensor([here], device=self.args.device)).any())

    def _save_before_fault(self) -> None:
        """Save the last step, unless it is saved already."""
        step = self.state.global_step
        wanted = [step > 0 and not Path(str(self.args.output_dir), f"checkpoint-{step}").exists()]
        broadcast_object_list(wanted)
        if wanted[0]:
            self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Like `ResumableTrainer`'s, with the positions of streams."""
        if self.progress:
            states = cast("dict[str, Any]", self.state.stateful_callbacks)
            states[STREAM] = {"args": {}, "attributes": self.progress.state()}
        super()._save_checkpoint(model, trial)


class StreamCallback(TrainerCallback):
    """Set the epoch of a stream: with `ignore_data_skip`, Trainer would count from 0 in a resumed run."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the epoch to the finished share of the run."""
        state.epoch = state.global_step / state.max_steps
