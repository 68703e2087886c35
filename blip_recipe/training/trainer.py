"""What training and scoring have in common for every kind of BLIP: batches, order, evaluation and what is saved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import has_length

from blip_recipe.models.loading import name_stock_class
from blip_recipe.models.processors import normalize_pixels, save_processor
from blip_recipe.training.sharding import (
    check_checkpoint,
    describe_shards,
    embeddings_in_root,
    is_asked_for,
    shard_by_layer,
    whole_weights,
    without_aliases,
)
from blip_recipe.training.streams import StreamingTrainer
from blip_recipe.training.task import find_task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftModel
    from torch import nn
    from transformers import (
        BlipProcessor,
        EvalPrediction,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    from blip_recipe.models.attention import StockModel
    from blip_recipe.recipe.parsing import DataArguments, GenerationArguments, Recipe
    from blip_recipe.training.arguments import CaptionTrainingArguments

logger = logging.getLogger(__name__)


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping, whose patience a resumed run remembers, by evaluations of the training alone."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on counting where the checkpoint stopped."""
        super().on_train_begin(args, state, control, **kwargs)
        saved: dict[str, Any] = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        self.early_stopping_patience_counter = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Compare with the best evaluation so far."""
        if "eval_loss" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class BlipTrainer(StreamingTrainer):
    """Trains and scores a BLIP; what is learnt and scored is for those who derive from it.

    They give `compute_loss`, `prediction_step` and `score_on_this_process`.

    Args:
        model: One of our BLIPs, or peft's wrapper of it.
        args: Trainer's arguments.
        processor: BLIP's image processor and tokenizer.
        data: The recipe's data keys.
        generation: The recipe's generation keys.
        scorer: What scores predictions, where something has to be kept between evaluations.
        data_collator: Rows to batches; pictures as bytes are normalised here.
        train_dataset, eval_dataset: With the `rows` that they come from.

    Attributes:
        predictions: One record a row of the split that was scored last.
        scored_dataset: That split.
        epoch_sampler: What orders training rows, where it has to be told the epoch.
    """

    def __init__(
        self,
        model: StockModel | PeftModel,
        args: CaptionTrainingArguments,
        *,
        processor: BlipProcessor,
        data: DataArguments,
        generation: GenerationArguments,
        scorer: Any,
        **kwargs: Any,
    ) -> None:
        self.processor, self.data, self.generation, self.scorer = processor, data, generation, scorer
        self.predictions: list[dict[str, Any]] = []
        self.epoch_sampler: Any = None
        # `compute_loss` divides by what all accumulated batches hold.
        self.loss_is_scaled_for_ga = True
        super().__init__(
            model=model, args=args, processing_class=processor, compute_metrics=self.score_predictions, **kwargs
        )
        if self.is_fsdp_enabled:
            shard_by_layer(self.accelerator.state.fsdp_plugin)
        elif is_asked_for(args):
            logger.warning("FSDP is asked for, but accelerate shards on GPUs only: each process keeps all weights.")

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """The batch on the device, where the bytes of pictures become `pixel_values` as the model takes them."""
        inputs = super()._prepare_inputs(inputs)
        if "pixel_values" not in inputs:
            return inputs
        return inputs | {"pixel_values": normalize_pixels(inputs["pixel_values"], self.processor.image_processor)}

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """As Trainer's, which leaves autocast to accelerate, and that leaves out a sharded model."""
        if self.is_fsdp_enabled:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, where accelerate shards the model if it is asked to."""
        if not self.is_fsdp_enabled:
            return super()._prepare_for_training(*args, **kwargs)
        with embeddings_in_root(self.model):
            prepared = super()._prepare_for_training(*args, **kwargs)
        logger.info("Sharded: %s", describe_shards(self.model))
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As Trainer's, from a checkpoint of a run like this one."""
        check_checkpoint(resume_from_checkpoint, sharded=self.is_fsdp_enabled)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Every parameter: the original decays biases and norms too (`train_caption.py`, one AdamW group)."""
        return [name for name, _ in model.named_parameters()]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's; with several processes accelerate does not tell all who draw which epoch it is."""
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(kwargs["epoch"])
        if self.epoch_sampler is not None:
            self.epoch_sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Rows in their order, however training rows are drawn."""
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) else None

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with each row counted once: `Seq2SeqTrainer` gathers the filling of the last batch too."""
        self.gather_function = self.accelerator.gather_for_metrics
        self.scored_dataset: Any = dataloader.dataset
        if self.accelerator._models or self.is_deepspeed_enabled:
            plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
            with whole_weights(self.model_wrapped, plugin):
                return super().evaluation_loop(dataloader, *args, **kwargs)
        # A model that Trainer prepares for an evaluation would later be trained without DistributedDataParallel.
        self.accelerator._models.append(self.model)
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.accelerator._models.clear()

    def score_predictions(self, prediction: EvalPrediction) -> dict[str, float]:
        """The `compute_metrics` hook: one process scores, all hear the result. Fills `predictions`."""
        metrics: list[dict[str, float]] = [{}]
        if self.is_world_process_zero():
            scores = self.score_on_this_process(prediction)
            metrics = [scores | self._sum_for_best_model(scores)]
        # One process scores (METEOR is a JVM of its own); all need the result to agree on the best checkpoint.
        broadcast_object_list(metrics)
        return metrics[0]

    def score_on_this_process(self, prediction: EvalPrediction) -> dict[str, float]:
        """Loss and scores of what `prediction_step` gave for the rows of `scored_dataset`; fills `predictions`."""
        raise NotImplementedError

    def _sum_for_best_model(self, scores: dict[str, float]) -> dict[str, float]:
        """`metric_for_best_model` may be a sum, such as the original's `bleu_4+cider` (`train_caption.py`)."""
        name = (self.args.metric_for_best_model or "").removeprefix("eval_")
        return {name: sum(scores[part] for part in name.split("+"))} if "+" in name and self.is_in_train else {}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As Trainer's, in the form that everybody can load and without the pickle of the arguments."""
        super()._save(output_dir, without_aliases(state_dict, self.model))
        if self.args.should_save:
            directory = Path(output_dir or str(self.args.output_dir))
            (directory / TRAINING_ARGS_NAME).unlink()
            save_processor(self.processor, directory)
            if (directory / "adapter_config.json").exists():
                model: Any = self.model
                name_stock_class(directory, model.base_model.model.stock_class)


def build_trainer(
    recipe: Recipe[Any],
    model: StockModel | PeftModel,
    processor: BlipProcessor,
    scorer: Any,
    datasets: Mapping[str, Any],
    callbacks: list[TrainerCallback] | None = None,
) -> BlipTrainer:
    """A trainer of the recipe's task for `model`, on the `train` and `eval` parts of `datasets`."""
    if recipe.training.n_gpu > 1:
        logger.warning(
            "%d GPUs are there, 1 is used: start the command with `accelerate launch` to use all.",
            recipe.training.n_gpu,
        )
        # torch's DataParallel would cut captions and images at different places.
        recipe.training._n_gpu = 1
    patience = recipe.objective.early_stopping_patience
    if patience is not None:
        callbacks = [*(callbacks or []), EarlyStopping(patience)]
    return find_task(recipe.objective.task).trainer(recipe)(
        model,
        recipe.training,
        processor=processor,
        data=recipe.data,
        generation=recipe.generation,
        scorer=scorer,
        train_dataset=datasets.get("train"),
        eval_dataset=datasets.get("eval"),
        callbacks=callbacks,
    )
