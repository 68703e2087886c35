"""What makes a run that died and was started again end as if it had not: `ResumableTrainer`.

Trainer restores weights, optimiser, schedule and random states. Here it is added that checkpoints are whole or not
there, that evaluations take nothing from the random numbers of the training, that losses which were not logged yet are
kept, and that nothing is left out or done twice at the end of an epoch, of the run, or when the run is asked to stop.
"""

from __future__ import annotations

import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Seq2SeqTrainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from blip_recipe.data.storage import read_json, write_json
from blip_recipe.errors import StoppedError
from blip_recipe.training.checkpoints import STAGING, explain_save_errors, move_into_place, rotate_checkpoints
from blip_recipe.training.stop_signals import StopSignals, ignore_stop_signals

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader
    from transformers import TrainerControl, TrainerState, TrainingArguments

LOSSES = "unlogged_losses"
"""Where Trainer's state keeps the losses since the last log line, and before."""


class ResumableTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` whose runs can die at any moment and go on bit for bit.

    Attributes:
        stop_signals: Tells when the run is asked to stop.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_signals = StopSignals()
        self.add_callback(ResumptionCallback(self))

    @property
    def must_stop(self) -> bool:
        """Whether this process or another one of the run was asked to stop."""
        asked = self.stop_signals.received is not None
        if self.args.world_size == 1:
            return asked
        # Signals do not reach all processes at the same step.
        return bool(self.accelerator.gather(torch.tensor([asked], device=self.args.device)).any())

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer writes checkpoints, and deletes them: aside, where only unfinished ones are."""
        return str(Path(str(self.args.output_dir), STAGING))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer's, but written aside, checked and moved into place.

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
        """As Trainer's, which takes one step too many from a checkpoint of a last step within an epoch."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's, leaving random states as they were; if it has to stop, the evaluation is still owed."""
        if kwargs.get("skip_scheduler") and self.state.global_step:
            return {}  # `eval_on_start`, which was done at the start of the run
        try:
            with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
                return super()._evaluate(*args, **kwargs)
        except StoppedError:
            # After the last step there is nothing to go on with, that would do the evaluation.
            if self.state.global_step < self.state.max_steps:
                self._save_checkpoint(self.model, None)
            raise

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As Trainer's, right before the first step from a checkpoint; an evaluation that is owed comes before both."""
        super()._load_rng_state(checkpoint)
        planned = _saved_states(self.state)["TrainerControl"]["args"]
        if planned["should_evaluate"]:
            self.control.should_evaluate, self.control.should_save = True, planned["should_save"]
            model, epoch = cast("nn.Module", self.model), float(self.state.epoch or 0)
            self._maybe_log_save_evaluate(self._tr_loss, None, model, None, epoch, None, time.time())

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """As Trainer's, with workers that leave it to the main process to stop: it needs them for its last step."""
        loader = super()._get_dataloader(*args, **kwargs)
        loader.worker_init_fn = partial(ignore_stop_signals, loader.worker_init_fn)
        return loader

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """As Trainer's, with files that are never half written."""
        if self.is_world_process_zero():
            for path, earlier in ((f"{split}_results.json", False), ("all_results.json", True))[: 1 + combined]:
                before = read_json(Path(str(self.args.output_dir), path)) if earlier else {}
                write_json(Path(str(self.args.output_dir), path), dict(sorted((before | metrics).items())))


def _saved_states(state: TrainerState) -> dict[str, Any]:
    """What `state` keeps for others, by name: annotated as the list that Trainer makes it from."""
    return cast("dict[str, Any]", state.stateful_callbacks)


class ResumptionCallback(TrainerCallback):
    """Restores what Trainer does not, saves when nothing is left out, and ends a run that has to stop."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer
        self.save_at_epoch_end = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the losses of a checkpoint, and find the best one also where `output_dir` was moved."""
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
        """Save after the last step of an epoch once its evaluation and log line are there too, and before a stop."""
        ends = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        if ends:
            self.save_at_epoch_end, control.should_save = control.should_save, False
        elif self.trainer.must_stop and not control.should_evaluate:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save what was put off."""
        control.should_save |= self.save_at_epoch_end or (self.trainer.must_stop and not control.should_evaluate)
        self.save_at_epoch_end = False

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Stop, now that nothing would be lost."""
        self._stop_if_asked()

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Stop in an evaluation too, which may take longer than there is time."""
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.trainer.must_stop:
            raise StoppedError(self.trainer.stop_signals.received or signal.SIGTERM)
