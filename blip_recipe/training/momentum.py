"""Train with momentum encoders, and save them in checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from blip_recipe.models.adapters import is_adapted
from blip_recipe.models.momentum import MomentumState, saved_temperature
from blip_recipe.training.pair_memory import momentum_bytes, pair_step
from blip_recipe.training.trainer import BlipTrainer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

    from blip_recipe.training.memory import Step

logger = logging.getLogger(__name__)

PAIR = ("pixel_values", "image_embeds", "input_ids", "attention_mask")
"""The entries of a batch that are encoded, pictures or their cached embeddings."""


class MomentumTrainer(BlipTrainer):
    """The base class of trainers with the losses of ITC and ITM.

    Its model is an `ImageTextModel`, and its arguments have those of `MomentumArguments`.

    Attributes:
        alpha_epochs: The epochs over which the weight of soft targets is ramped up.
        predicts_tokens: Whether there is a third loss, that of the captions' tokens.
        momentum: The momentum encoders and the queue; None before the training.
    """

    alpha_epochs: ClassVar[int] = 1
    predicts_tokens: ClassVar[bool] = False

    args: Any

    def prepare_model(self, model: Any, args: Any) -> Any:
        """Load or convert the model, and reset the momentum encoders."""
        model = super().prepare_model(model, args)
        self.momentum: MomentumState | None = None
        self._momentum_step = -1
        return model

    @classmethod
    def traced_step(cls, args: Any, rows: Any, tokenizer: PreTrainedTokenizerBase) -> Step:
        """The step with the longest captions."""
        return pair_step(args, rows, tokenizer, predicts_tokens=cls.predicts_tokens)

    @classmethod
    def bytes_beside(cls, model: Any, args: Any) -> int:
        """The bytes of momentum encoders and queue."""
        return momentum_bytes(model.get_base_model() if is_adapted(model) else model, args.queue_size)

    def prepare_task(self) -> None:
        """Warn if the weight of soft targets cannot follow the images of a pass."""
        super().prepare_task()
        if self.progress and self.progress.stream.split.images is None:
            logger.warning(
                "The number of images of the stream is unknown: alpha rises over all %d steps of the run.",
                self.args.max_steps,
            )

    def _start_momentum(self) -> MomentumState:
        momentum = MomentumState(self.plain_model, self.args.queue_size, self.args.momentum, self.args.seed)
        return momentum.to(self.args.device)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Like Trainer's, after copying the momentum encoders from the model."""
        if self.momentum is None:
            self.momentum = self._start_momentum()
        return super().create_optimizer(*args, **kwargs)

    def with_momentum(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a forward pass in training, after the update of the momentum encoders.

        Args:
            inputs: A batch of pairs: `captions_id`, `input_ids` and `attention_mask`, and `pixel_values` or
                `image_embeds`.
        """
        momentum, plain = cast("MomentumState", self.momentum), self.plain_model
        plain.clamp_temperature()
        if self._momentum_step != self.state.global_step:
            momentum.update(plain)
            self._momentum_step = self.state.global_step
        pairs = {name: inputs[name] for name in PAIR if name in inputs}
        features = momentum.train().encode(**pairs, ids=inputs["captions_id"])
        return {
            **pairs,
            "momentum": features,
            "candidates": momentum.candidates(features),
            "alpha": self.alpha,
            "uniform": momentum.uniform(len(inputs["captions_id"])),
            "negatives_from_all": self.args.negative_all_rank,
        }

    @property
    def alpha(self) -> float:
        """The weight of soft targets, ramped up over the first epochs."""
        return self.args.alpha * min(1.0, self.finished_epochs / self.alpha_epochs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        """Count the pairs of a step instead of the predicted tokens."""
        pairs = [{"labels": batch["row"], "shift_labels": batch["row"]} for batch in batch_samples]
        return super()._get_num_items_in_batch(pairs, device)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Like Trainer's, with momentum encoders, queue and temperature."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            cast("MomentumState", self.momentum).save(Path(output_dir), self.plain_model.temperature)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Like Trainer's, with momentum encoders, queue and temperature."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            cast("MomentumState", self.momentum).load(Path(checkpoint))
            self._restore_temperature(Path(checkpoint))

    def _load_best_model(self) -> None:
        """Like Trainer's, with the temperature of the best model."""
        super()._load_best_model()
        self._restore_temperature(Path(str(self.state.best_model_checkpoint)))

    def _restore_temperature(self, checkpoint: Path) -> None:
        temperature = self.plain_model.temperature
        temperature.data.copy_(saved_temperature(checkpoint))

    @classmethod
    def describe_momentum(cls, args: Any) -> dict[str, str]:
        """The settings of ITC and ITM for the card."""
        first = "the first epoch" if cls.alpha_epochs == 1 else f"the first {cls.alpha_epochs} epochs"
        return {
            "queue": f"{args.queue_size:,} pairs",
            "momentum of the encoders": f"{args.momentum:g}",
            "weight of soft targets": f"{args.alpha:g}, ramped up over {first}",
            "hard negatives": "of all processes" if args.negative_all_rank else "of the process's own batch",
        }
