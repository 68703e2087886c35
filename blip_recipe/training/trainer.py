"""The base trainer of all tasks."""

from __future__ import annotations

import copy
import logging
import os
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, EvalPrediction, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import has_length

from blip_recipe.card.baseline import match_baseline
from blip_recipe.data.dataset import PictureDataset
from blip_recipe.data.holdout import find_shared_pictures
from blip_recipe.data.mixture import Mixture, MixtureSampler
from blip_recipe.data.pixels import normalize_pixels
from blip_recipe.data.storage import BASELINE_PREDICTIONS_FILE, write_json, write_lines
from blip_recipe.data.streaming import PictureStream
from blip_recipe.errors import RecipeError
from blip_recipe.hub.publishing import preflight
from blip_recipe.metrics.comparison import P_VALUE, paired_p_values
from blip_recipe.models.adapters import (
    add_lora,
    check_is_lora,
    is_adapted,
    move_to_root,
    name_stock_class,
    save_learnt_beside,
)
from blip_recipe.models.linear import use_onednn
from blip_recipe.models.loading import load_base, load_merged
from blip_recipe.models.processors import load_processor, save_processor
from blip_recipe.models.threads import fit_threads
from blip_recipe.training.checkpoints import last_checkpoint
from blip_recipe.training.compatibility import check_compatibility
from blip_recipe.training.embeddings import cache_embeddings, check_frozen
from blip_recipe.training.memory import choose_checkpointing
from blip_recipe.training.publishing import BASELINE, PublishingTrainer, build_recipe
from blip_recipe.training.sharding import (
    check_checkpoint_sharding,
    configure_fsdp,
    describe_shards,
    drop_tied_weights,
    is_fsdp_requested,
    keep_embeddings_in_root,
    unsharded_weights,
)
from blip_recipe.training.streams import plan_steps
from blip_recipe.training.texts import MAX_POSITIONS, report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peft import LoraConfig
    from torch import nn
    from transformers import (
        BlipProcessor,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    from blip_recipe.metrics.statistics import Statistics
    from blip_recipe.training.memory import Step
    from blip_recipe.training.training_arguments import BlipTrainingArguments

logger = logging.getLogger(__name__)


class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping that survives resumption and ignores evaluations of other splits."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the counter of the checkpoint."""
        super().on_train_begin(args, state, control, **kwargs)
        saved: dict[str, Any] = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        self.early_stopping_patience_counter = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Count an evaluation without improvement, unless it is one of another split."""
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def takes_trial(model_init: Callable[..., Any]) -> bool:
    """Whether `model_init` takes the trial of a hyperparameter search."""
    return any(
        each.name == "trial" or (each.default is each.empty and "POSITIONAL_" in each.kind.name)
        for each in signature(model_init).parameters.values()
    )


class BlipTrainer(PublishingTrainer):
    """The base class of the trainers.

    Subclasses implement `build_dataset`, `build_collator`, `compute_loss`, `prediction_step` and
    `score_on_this_process`. The arguments are those of `CaptionTrainer`.

    Attributes:
        arguments_class: The class of the training arguments.
        epoch_sampler: The sampler of training rows, if it needs the epoch number.
        mixture: The training rows, if they are a mixture of data sets.
    """

    arguments_class: ClassVar[type[BlipTrainingArguments]]

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | None = None,
        args: BlipTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        processing_class: BlipProcessor | None = None,
        peft_config: LoraConfig | None = None,
        data_collator: Callable[..., Any] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        model_init: Callable[..., Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        # Copy the arguments: the changes below must not reach another trainer with the same arguments.
        args = copy.copy(self._check_arguments(args, kwargs))
        if args.eval_strategy != "no" and compute_metrics is None and not isinstance(eval_dataset, dict):
            args.check_best_model()
        set_seed(args.seed)
        self.peft_config, self.user_metrics = peft_config, compute_metrics
        self.processor = self._find_processor(model, model_init, processing_class)
        if model is not None:
            model = self.prepare_model(model, args)
        self.epoch_sampler: Any = None
        self.mixture: Mixture | None = None
        # `compute_loss` divides by the items of all accumulated batches.
        self.loss_is_scaled_for_ga = True
        # Trainer's own push hides failures and uploads pickles.
        self.pushes_when_trained, args.push_to_hub = args.push_to_hub, False
        if args.n_gpu > 1:
            logger.warning("Using 1 of %d GPUs: start with `accelerate launch` to use all.", args.n_gpu)
            # torch's DataParallel would split texts and images at different rows.
            args._n_gpu = 1
        self.original_train_dataset = train_dataset
        train_dataset = self._prepare_dataset(train_dataset, args, "train_dataset", training=True)
        eval_dataset = self._prepare_dataset(eval_dataset, args, "eval_dataset")
        if args.text_notes is None:
            self._look(args, model, train_dataset, eval_dataset)
        if model is not None:
            self._use_arguments(model, args)
        if isinstance(train_dataset, PictureStream):
            plan_steps(args, train_dataset.split.images)
        patience = [] if args.early_stopping_patience is None else [EarlyStopping(args.early_stopping_patience)]
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or self.build_collator(args),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self.processor,
            model_init=None if model_init is None else lambda trial=None: self._init_model(model_init, trial),
            compute_metrics=self.score_predictions,
            callbacks=[*(callbacks or []), *patience],
            **kwargs,
        )
        fit_threads(self.plain_model)
        if self.is_fsdp_enabled:
            configure_fsdp(self.accelerator.state.fsdp_plugin)
        elif is_fsdp_requested(args):
            logger.warning("FSDP needs GPUs: without them each process keeps all weights.")
        self.prepare_task()
        if getattr(self.args, "cache_image_embeds", False):
            check_frozen(self.plain_model)
            self._cache_embeddings(self.train_dataset, self.eval_dataset)
        is_open = self.args.auto_checkpointing and self.args.device.type == "cuda"
        if is_open and isinstance(self.train_dataset, PictureDataset):
            self.estimate_memory(self.model, self.args, self.train_dataset.rows, self.processor)

    def _check_arguments(self, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The training arguments, or the default ones.

        Raises:
            RecipeError: They are of the wrong class, or an argument is not supported.
        """
        if args is None:
            return self.arguments_class(output_dir="outputs/trainer")
        if not isinstance(args, self.arguments_class):
            raise RecipeError(
                f"args is a {type(args).__name__}: {type(self).__name__} expects {self.arguments_class.__name__}, "
                "which takes the same keys."
            )
        if kwargs.get("compute_loss_func") is not None:
            raise RecipeError("compute_loss_func is not supported: override compute_loss instead.")
        if args.generation_config is not None:
            raise RecipeError(
                "generation_config is not supported: set generation_num_beams, "
                "generation_max_length and generation_min_length instead."
            )
        return args

    # Methods that subclasses implement

    def prepare_task(self) -> None:
        """Set up the parts of the task besides model and data; called at the end of the constructor."""

    def build_dataset(self, dataset: Any, args: Any, *, training: bool, name: str) -> Any:
        """Convert a user's data set, or the rows of a recipe, for this trainer. Error messages call it `name`.

        Raises:
            RecipeError: The columns are unknown or have unexpected types.
        """
        raise NotImplementedError

    def build_collator(self, args: Any) -> Callable[..., Any]:
        """The data collator. Pictures of its batches are bytes, which the trainer normalises on the device."""
        raise NotImplementedError

    @classmethod
    def traced_step(cls, args: Any, rows: Any, tokenizer: PreTrainedTokenizerBase) -> Step | None:
        """The largest step on `rows`, to estimate its memory; None if it cannot be traced."""
        return None

    @classmethod
    def bytes_beside(cls, model: Any, args: Any) -> int:
        """Bytes that the training keeps beside the model, such as copies of it."""
        return 0

    @classmethod
    def estimate_memory(cls, model: Any, args: Any, rows: Any, processor: BlipProcessor) -> int | None:
        """Peak bytes of a step on `rows`; None if they cannot be estimated.

        Enables gradient checkpointing if a step would not fit the GPU without it, unless the arguments set it.
        """
        step = cls.traced_step(args, rows, processor.tokenizer)
        return None if step is None else choose_checkpointing(model, args, step, beside=cls.bytes_beside(model, args))

    @classmethod
    def look_at_texts(
        cls, args: Any, tokenizer: PreTrainedTokenizerBase, train: Any, scored: Any, positions: int
    ) -> list[str]:
        """Look at the tokenised texts, and set the lengths of `args` that follow the data and are not given.

        Args:
            args: The training arguments.
            tokenizer: The model's tokenizer.
            train: Rows, data set or stream to train on, or None.
            scored: Rows or data set to score, a dictionary of these, or None.
            positions: The maximum length of the model in tokens.

        Returns:
            A sentence for each thing that does not fit.
        """
        return []

    def score_on_this_process(self, prediction: EvalPrediction) -> dict[str, float]:
        """Loss and scores from the outputs of `prediction_step` for `scored_dataset`; fills `predictions`."""
        raise NotImplementedError

    def reference_ids(self) -> list[list[int]]:
        """Token ids of the first reference of each row of `predictions`, for a user's `compute_metrics`."""
        raise NotImplementedError

    # The model

    def prepare_model(self, model: Any, args: Any) -> Any:
        """Load or convert the model to train, and add the adapter of `peft_config`.

        Args:
            model: Hub id, directory, a model of the stock class or of `model_class`, or a `PeftModel` of one of these.
            args: The training arguments.

        Raises:
            RecipeError: The model is none of these.
        """
        if isinstance(model, (str, os.PathLike)):
            if Path(model).exists() and Path(args.output_dir).exists() and Path(model).samefile(args.output_dir):
                raise RecipeError(
                    f"model and output_dir are both {args.output_dir}: training would overwrite the model. Choose "
                    "another output_dir."
                )
            model, _ = load_base(str(model), self.model_class)
            model.use_sdpa()
        elif is_adapted(model):
            if self.peft_config is not None:
                raise RecipeError("model already has an adapter and peft_config is given: use only one of them.")
            check_is_lora(model.active_peft_config, "model")
            model.base_model.model = self._convert(model.get_base_model())
        else:
            model = self._convert(model)
        if self.peft_config is not None:
            check_is_lora(self.peft_config, "peft_config")
            model = add_lora(model, self.peft_config)
        if args.device.type == "cpu":
            use_onednn(model)
        return model

    def _look(self, args: Any, model: Any, train: Any, scored: Any) -> None:
        """Look at texts and pictures, set the lengths that are not given, and warn of what does not fit."""
        positions = MAX_POSITIONS if model is None else model.config.text_config.max_position_embeddings
        notes = self.look_at_texts(args, self.processor.tokenizer, train, scored, positions)
        several = scored if isinstance(scored, dict) else {"eval_dataset": scored}
        tables = {name: each.rows for name, each in several.items() if isinstance(each, PictureDataset)}
        shared = find_shared_pictures(train.rows, tables) if isinstance(train, PictureDataset) else []
        report([*notes, *shared], args)

    def _use_arguments(self, model: Any, args: Any) -> None:
        """Check the arguments against the model, and set its decoding.

        Raises:
            RecipeError: A length does not fit, or the processor belongs to another model.
        """
        check_compatibility(args, model, self.processor)
        if model.can_generate() and (decoding := self.decoding(args)):
            # Pipelines of this model, in memory or saved, then generate as its evaluation does.
            base = model.get_base_model() if is_adapted(model) else model
            base.decoding_settings = decoding
            base.generation_config.update(**decoding.generate_kwargs(), _from_model_config=False)

    def _convert(self, model: Any) -> Any:
        stock = self.model_class.stock_class
        if isinstance(model, self.model_class):
            return model
        accepted: tuple[Any, ...] = (stock, *self.model_class.other_stock_classes)
        if not isinstance(model, accepted):
            raise RecipeError(
                f"model is a {type(model).__name__}: {type(self).__name__} expects a {stock.__name__}, a Hub id or a "
                "directory of one."
            )
        return self.model_class.from_stock(model).use_sdpa()

    def _init_model(self, model_init: Callable[..., Any], trial: Any) -> Any:
        """Build a model with the user's `model_init`, which may take the trial of a hyperparameter search."""
        model = self.prepare_model(model_init(trial) if takes_trial(model_init) else model_init(), self.args)
        self._use_arguments(model, self.args)
        return model

    def _find_processor(self, model: Any, model_init: Any, processor: BlipProcessor | None) -> BlipProcessor:
        """The given processor, or the model's own.

        Raises:
            RecipeError: There is none, or it is of the wrong class.
        """
        if model is None and model_init is None:
            raise RecipeError("model is missing: expected a Hub id, a directory, a model, or model_init.")
        if processor is not None:
            if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
                raise RecipeError(
                    f"processing_class is a {type(processor).__name__}: expected a BlipProcessor, which has an image "
                    "processor and a tokenizer."
                )
            return processor
        source = model
        if model is None:
            source = None if takes_trial(model_init) else model_init()
        name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name_or_path", "")
        if not name:
            raise RecipeError(
                "processing_class is missing, and the model has no name_or_path to load it from: expected a "
                "BlipProcessor (image processor and tokenizer)."
            )
        return load_processor(str(name))

    @property
    def plain_model(self) -> Any:
        """The model without the wrappers of several processes, an adapter or a compiler."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if is_adapted(model) else model

    # Rows

    def _prepare_dataset(self, dataset: Any, args: Any, name: str, *, training: bool = False) -> Any:
        """Convert a data set, or each one of a dictionary; error messages call it `name`."""
        if dataset is None or isinstance(dataset, (PictureDataset, PictureStream)):
            return dataset
        if isinstance(dataset, Mixture) and training:
            if args.train_sampling_strategy == "group_by_length":
                raise RecipeError(
                    "dataset_mixture and train_sampling_strategy 'group_by_length' are both given: use only one of "
                    "them."
                )
            self.mixture = dataset
            return self.build_dataset(dataset.rows, args, training=training, name=name)
        if isinstance(dataset, (dict, str)) and training:
            found = f"the splits {', '.join(map(str, dataset))}" if isinstance(dataset, dict) else repr(dataset)
            raise RecipeError(f"train_dataset is {found}: expected one split, such as dataset['train'].")
        if isinstance(dataset, str):  # the key of one of the eval sets of the constructor
            several = getattr(self, "eval_dataset", None)
            if not (isinstance(several, dict) and dataset in several):
                raise RecipeError(
                    f"{name} is {dataset!r}: expected a data set, or a key of the eval_dataset dictionary."
                )
            return dataset
        if isinstance(dataset, dict):
            return {key: self._prepare_dataset(each, args, f"{name}[{key!r}]") for key, each in dataset.items()}
        prepared = self.build_dataset(dataset, args, training=training, name=name)
        if getattr(args, "cache_image_embeds", False) and hasattr(self, "accelerator"):
            self._cache_embeddings(prepared)
        return prepared

    def _cache_embeddings(self, *datasets: Any) -> None:
        """Cache the embeddings of all pictures of `datasets`, of which each may be a dictionary of data sets."""
        each = chain.from_iterable(one.values() if isinstance(one, dict) else [one] for one in datasets)
        cache_embeddings(self, self.processor, [one for one in each if isinstance(one, PictureDataset)])

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Like Trainer's, on any data set that the constructor takes."""
        return super().evaluate(self._prepare_dataset(eval_dataset, self.args, "eval_dataset"), *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Like Trainer's, on any data set that the constructor takes; fills `predictions`."""
        return super().predict(self._prepare_dataset(test_dataset, self.args, "test_dataset"), *args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """Move the batch to the device and normalise its pictures there."""
        inputs = super()._prepare_inputs(inputs)
        if "pixel_values" not in inputs:
            return inputs
        return inputs | {"pixel_values": normalize_pixels(inputs["pixel_values"], self.processor.image_processor)}

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Like Trainer's, but sets the epoch of data set and sampler; accelerate does not reach all of them."""
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(kwargs["epoch"])
        if self.epoch_sampler is not None:
            self.epoch_sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Like Trainer's; the rows of an epoch of a mixture follow the weights of its data sets."""
        if self.mixture is None or train_dataset not in (None, self.train_dataset):
            return super()._get_train_sampler(train_dataset)
        self.epoch_sampler = MixtureSampler(self.mixture, self.args.seed)
        return self.epoch_sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Evaluate rows in their order, whatever the training sampler is."""
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) else None

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Like Trainer's, but skips damaged checkpoints and, with `push_to_hub`, pushes the final model and card.

        Args:
            resume_from_checkpoint: A checkpoint; True is the newest intact one of `output_dir`, if there is one.
        """
        if resume_from_checkpoint is True:
            newest = [last_checkpoint(self.output_dir) if self.is_world_process_zero() else None]
            broadcast_object_list(newest)
            resume_from_checkpoint = str(newest[0]) if newest[0] else None
        if self.pushes_when_trained:
            # Check name and token before training.
            preflight(self.args.hub_model_id, self.output_dir.name, self.args.hub_private_repo, HfApi())
        # Seed again, so that an evaluation before the training does not change it.
        set_seed(self.args.seed)
        self.is_saved = False
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        self._drop_outdated_results(
            self.state.best_global_step if self.args.load_best_model_at_end else self.state.global_step
        )
        if self.progress:
            self.train_counts, self.card.epochs = self.progress.totals(self.card.epochs)
            self.skipped = self.progress.all_skipped()
        if self.pushes_when_trained:
            self.push_to_hub()
        return result

    def _drop_outdated_results(self, step: int | None) -> None:
        """Drop scores and texts of weights other than the final ones, but keep the base model's."""
        noted = [entry for entry in self.state.log_history if entry["step"] == step]
        kept = {name: entry for name in self.scored for entry in noted if f"{name}_loss" in entry}
        self.scored = {name: self.scored[name] for name in kept}
        self.results = {name: entry for name, entry in self.results.items() if name == BASELINE} | {
            name: {key: value for key, value in entry.items() if key != "step"} for name, entry in kept.items()
        }
        if not kept or self.scored_step != step:
            self.predictions = []

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Like Trainer's, with autocast for a sharded model too: accelerate does not add it there."""
        if self.is_fsdp_enabled:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Like Trainer's, but shards word embeddings and LM head together."""
        if not self.is_fsdp_enabled:
            return super()._prepare_for_training(*args, **kwargs)
        with keep_embeddings_in_root(self.model):
            prepared = super()._prepare_for_training(*args, **kwargs)
        logger.info("Sharded: %s", describe_shards(self.model))
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Like Trainer's, after checking that the checkpoint is sharded if and only if this run is."""
        check_checkpoint_sharding(resume_from_checkpoint, sharded=self.is_fsdp_enabled)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Like Trainer's, without the tied weights: a checkpoint keeps them under one of their names."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All parameters: the original decays biases and norms too (`train_caption.py`, one AdamW group)."""
        return [name for name, _ in model.named_parameters()]

    def items_per_process(self, items_in_step: torch.Tensor | int) -> torch.Tensor | float:
        """The number that a process divides its loss by, from the items of an optimiser step.

        DistributedDataParallel averages gradients over processes, so their items are divided too.
        """
        if self.args.average_tokens_across_devices:
            return items_in_step / self.accelerator.num_processes
        return items_in_step

    # Evaluation

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Like Trainer's, but counts each row once: `Seq2SeqTrainer` also gathers the padding of the last batch."""
        self.gather_function = self.accelerator.gather_for_metrics
        name = kwargs.get("metric_key_prefix", "eval")
        self.scored.pop(name, None)  # keep the order of evaluation
        self.scored_dataset = self.scored[name] = dataloader.dataset
        self.scored_step, self.scored_name = self.state.global_step, name
        output = self._evaluate_whole(dataloader, *args, **kwargs)
        self.results[name] = output.metrics
        if name == BASELINE and self.is_world_process_zero():
            write_lines(self.output_dir / BASELINE_PREDICTIONS_FILE, self.predictions)
        return output

    def _evaluate_whole(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        if self.accelerator._models or self.is_deepspeed_enabled:
            plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
            with unsharded_weights(self.model_wrapped, plugin):
                return super().evaluation_loop(dataloader, *args, **kwargs)
        # If Trainer prepared the model for evaluation, it would later be trained without DistributedDataParallel.
        self.accelerator._models.append(self.model)
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.accelerator._models.clear()

    def score_predictions(self, prediction: EvalPrediction) -> dict[str, float]:
        """The `compute_metrics` hook: the first process scores and broadcasts the result. Fills `predictions`.

        A user's `compute_metrics` replaces the scores. It gets the token ids of the predictions and of the first
        reference of each row, both padded with -100; the texts are in `predictions`.
        """
        metrics: list[dict[str, float]] = [{}]
        if self.is_world_process_zero():
            scores = self.score_on_this_process(prediction)
            if self.user_metrics is not None and "loss" in scores:
                scores = {"loss": scores["loss"]} | self.user_metrics(self._for_user_metrics(prediction))
            metrics = [scores | self._sum_for_best_model(scores)]
        # One process scores, as METEOR starts a JVM; all processes need the result to choose the best checkpoint.
        broadcast_object_list(metrics)
        return metrics[0]

    def _for_user_metrics(self, prediction: EvalPrediction) -> EvalPrediction:
        references = [torch.tensor(ids) for ids in self.reference_ids()]
        padded = torch.nn.utils.rnn.pad_sequence(references, batch_first=True, padding_value=-100)
        return EvalPrediction(predictions=prediction.predictions, label_ids=padded.numpy())

    def generate_kwargs(self) -> dict[str, Any]:
        """The arguments of `generate` in this evaluation; those given to `evaluate` take precedence."""
        args: Any = self.args
        # Trainer keeps the arguments of `evaluate` in `_gen_kwargs`.
        return args.generate_kwargs() | getattr(self, "_gen_kwargs", {})

    @staticmethod
    def max_generated_tokens(generate_kwargs: Mapping[str, Any]) -> int:
        """The maximum number of generated tokens."""
        return generate_kwargs.get("max_new_tokens") or generate_kwargs["max_length"]

    @property
    def resamples(self) -> int:
        """The number of resamples of this evaluation: none during training, where scores only choose weights."""
        return 0 if self.is_in_train else self.args.bootstrap_resamples

    def statistics_of(self, records: Sequence[Mapping[str, Any]], found: Sequence[Statistics]) -> list[Statistics]:
        """The statistics of other predictions for the scored split, with the names of `found`."""
        raise NotImplementedError

    def judge(self, statistics: Sequence[Statistics]) -> dict[str, float]:
        """The p-values of the scores of `predictions` against the base model's; none for other rows than it had."""
        before = match_baseline(self.output_dir, self.predictions, self.task) if self.has_baseline() else None
        if not statistics or before is None:
            return {}
        p_values = paired_p_values(
            self.statistics_of(before, statistics), statistics, resamples=self.resamples, seed=self.args.seed
        )
        return {f"{name}_{P_VALUE}": value for name, value in p_values.items()}

    def has_baseline(self) -> bool:
        """Whether this evaluation is compared with that of the untouched base model: not during training."""
        is_known = self.recipe is not None or BASELINE in self.results
        return bool(self.resamples) and self.scored_name != BASELINE and is_known

    def current_metrics(self) -> Sequence[str]:
        """The metrics of this evaluation: `eval_metrics` during training, else `metrics`."""
        return self.args.metrics_while_training() if self.is_in_train else self.args.metrics

    def _sum_for_best_model(self, scores: dict[str, float]) -> dict[str, float]:
        """The value of a `metric_for_best_model` that is a sum, such as the original's `bleu_4+cider`."""
        name = (self.args.metric_for_best_model or "").removeprefix("eval_")
        return {name: sum(scores[part] for part in name.split("+"))} if "+" in name and self.is_in_train else {}

    # Saving

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Like Trainer's, with the settings that scores depend on."""
        super().save_metrics(split, metrics | ({} if split == "train" else self.args.score_settings()), combined)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Like Trainer's, in a form that plain transformers loads and without the pickle of the arguments."""
        super()._save(output_dir, drop_tied_weights(state_dict, self.model))
        if self.args.should_save:
            directory = Path(output_dir or self.output_dir)
            (directory / TRAINING_ARGS_NAME).unlink()
            save_processor(self.processor, directory)
            if is_adapted(self.model):
                move_to_root(directory, self.model)
                save_learnt_beside(directory, self.model)
                name_stock_class(directory, self.model_class.stock_class)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Like Trainer's, with a `recipe.json` that records prompt, decoding and training arguments.

        Deletes the files of an earlier model of the other kind (full or adapter) first.
        """
        directory = Path(output_dir or self.output_dir)
        if self.args.should_save and not _internal_call:
            plain = ("adapter_*",) if not is_adapted(self.model) else ()
            for pattern in plain or ("config.json", "generation_config.json", "model*.safetensors*"):
                for path in directory.glob(pattern):
                    path.unlink()
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and not _internal_call:
            write_json(directory / "recipe.json", self.recipe or build_recipe(self))
        self.is_saved |= output_dir is None

    def merge(self) -> BlipTrainer:
        """Merge the adapter into its base in full precision, and return a trainer that scores and saves the result."""
        adapter = self.output_dir / "adapter"
        self.save_model(str(adapter))
        self.accelerator.wait_for_everyone()
        model, _, _ = load_merged(str(adapter), self.model_class)
        merged = type(self)(
            model,
            self.args,
            self.train_dataset,
            self.eval_dataset,
            processing_class=self.processor,
            data_collator=self.data_collator,
            compute_metrics=self.user_metrics,
        )
        merged.state, merged.card = self.state, self.card
        merged.train_counts, merged.skipped = self.train_counts, self.skipped
        merged.sources, merged.recipe, merged.original_train_dataset = (
            self.sources,
            self.recipe,
            self.original_train_dataset,
        )
        return merged
