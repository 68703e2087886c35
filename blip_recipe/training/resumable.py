"""Resume a killed run bit for bit.

Trainer restores weights, optimiser, schedule and random states. `ResumableTrainer` adds four things: checkpoints are
written atomically; evaluations do not change the random states of the training; losses that are not logged yet are
saved; and no step, evaluation or checkpoint is skipped or repeated at the end of an epoch, of the run, or at a stop.
"""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Seq2SeqTrainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from blip_recipe.data.storage import read_json, write_json
from blip_recipe.errors import StoppedError
from blip_recipe.training.checkpoints import STAGING, explain_save_errors, move_into_place, rotate_checkpoints
from blip_recipe.training.stop_signals import StopSignals, shield_workers

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader
    from transformers import TrainerControl, TrainerState, TrainingArguments

LOSSES = "unlogged_losses"
"""The key of the Trainer state under which the losses before and since the last log line are saved."""


class ResumableTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` that can be killed at any time and resumes bit for bit.

    Attributes:
        stop_signals: Records a signal to stop.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_signals = StopSignals()
        self.add_callback(ResumptionCallback(self))

    @property
    def must_stop(self) -> bool:
        """Whether any process of the run received a stop signal."""
        asked = self.stop_signals.received is not None
        if self.args.world_size == 1:
            return asked
        # Signals can reach the processes at different steps.
        return bool(self.accelerator.gather(torch.tensor([asked], device=self.args.device)).any())

    def _get_output_dir(self, trial: Any) -> str:
        """The staging directory, so that Trainer neither writes nor rotates finished checkpoints."""
        return str(Path(str(self.args.output_dir), STAGING))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Like Trainer's, but writes to the staging directory first and then moves the checkpoint.

        Raises:
            SaveError: The disk is full.
        """
        output_dir, step = Path(str(self.args.output_dir)), self.state.global_step
        staged, checkpoint = (parent / f"checkpoint-{step}" for parent in (output_dir / STAGING, output_dir))
        unlogged = self.accelerator.gather(self._tr_loss).mean().item()
        losses = {"unlogged": unlogged, "logged": self._total_loss_scalar, "last_logged": self._globalstep_last_logged}
        _saved_states(self.state)[LOSSES] = {"args": {}, "attributes": losses}
        if self.args.should_save:
            shutil.rmtree(staged.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with explain_save_errors(f"The checkpoint of step {step}", output_dir):
            super()._save_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(checkpoint)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                move_into_place(staged, checkpoint)
                best = self.state.best_model_checkpoint
                rotate_checkpoints(
                    output_dir, self.args.save_total_limit, {checkpoint, *([Path(best)] if best else [])}
                )
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Like Trainer's, without its extra step when resuming after the last step in the middle of an epoch."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Like Trainer's, but restores the random states. If it is stopped, the evaluation runs after resuming."""
        if kwargs.get("skip_scheduler") and self.state.global_step:
            return {}  # `eval_on_start` already ran when the run started
        try:
            with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
                return super()._evaluate(*args, **kwargs)
        except StoppedError:
            # After the last step no training loop would run the evaluation when resumed.
            if self.state.global_step < self.state.max_steps:
                self._save_checkpoint(self.model, None)
            raise

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Like Trainer's, which is called before the first resumed step; a pending evaluation runs here."""
        super()._load_rng_state(checkpoint)
        planned = _saved_states(self.state)["TrainerControl"]["args"]
        if planned["should_evaluate"]:
            self.control.should_evaluate, self.control.should_save = True, planned["should_save"]
            model, epoch = cast("nn.Module", self.model), float(self.state.epoch or 0)
            self._maybe_log_save_evaluate(self._tr_loss, None, model, None, epoch, None, time.time())

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Like Trainer's, with workers that ignore the signals of their job. Only training drops a last batch."""
        drops = self.args.dataloader_drop_last
        try:
            self.args.dataloader_drop_last = drops and kwargs.get("is_training", False)
            return shield_workers(super()._get_dataloader(*args, **kwargs))
        finally:
            self.args.dataloader_drop_last = drops

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Like Trainer's, but writes the files atomically."""
        if self.is_world_process_zero():
            for path, earlier in ((f"{split}_results.json", False), ("all_results.json", True))[: 1 + combined]:
                before = read_json(Path(str(self.args.output_dir), path)) if earlier else {}
                write_json(Path(str(self.args.output_dir), path), dict(sorted((before | metrics).items())))


def _saved_states(state: TrainerState) -> dict[str, Any]:
    """`stateful_callbacks` of `state`, a dictionary although it is annotated as a list."""
    return cast("dict[str, Any]", state.stateful_callbacks)


class ResumptionCallback(TrainerCallback):
    """Restore losses, save after the evaluation of an epoch, and stop the run after a stop signal."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer
        self.save_at_epoch_end = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the losses, and the path of the best checkpoint in case `output_dir` was moved."""
        trainer, losses = self.trainer, _saved_states(state).get(LOSSES)
        trainer._initial_global_step = 0
        if losses and state.global_step:
            trainer._tr_loss += losses["attributes"]["unlogged"]
            trainer._total_loss_scalar = losses["attributes"]["logged"]
            trainer._globalstep_last_logged = losses["attributes"]["last_logged"]
        best = Path(str(args.output_dir), f"checkpoint-{state.best_global_step}")
        if best.is_dir():
            state.best_model_checkpoint = str(best)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Delay the save at the end of an epoch until it is evaluated and logged; save before a stop."""
        ends = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        if ends:
            self.save_at_epoch_end, control.should_save = control.should_save, False
        elif self.trainer.must_stop and not control.should_evaluate:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Trigger the delayed save."""
        control.should_save |= self.save_at_epoch_end or (self.trainer.must_stop and not control.should_evaluate)
        self.save_at_epoch_end = False

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Stop after the checkpoint is written."""
        self._stop_if_asked()

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Stop during an evaluation, which may take longer than the time left."""
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.trainer.must_stop:
            raise StoppedError(self.trainer.stop_signals.received or signal.SIGTERM)
