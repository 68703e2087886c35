"""Write the model card of a trained model and push both to the Hub."""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub import HfApi

from blip_recipe.card.baseline import match_baseline
from blip_recipe.card.callback import CardCallback
from blip_recipe.card.facts import (
    PLACEHOLDER,
    CardFacts,
    Source,
    Sources,
    SplitFacts,
    TrainingFacts,
    read_source,
)
from blip_recipe.card.gathering import PACKAGES, find_language, installed_versions, result_facts
from blip_recipe.card.pictures import draw_training_curves, write_samples
from blip_recipe.card.rendering import format_code, write_card
from blip_recipe.card.report import ReportFacts, pictures_of, remove_report, write_report
from blip_recipe.data.convert import source_name
from blip_recipe.data.dataset import PictureDataset
from blip_recipe.data.storage import (
    BASELINE_PREDICTIONS_FILE,
    PREDICTIONS_FILE,
    read_json,
    write_json,
    write_predictions,
)
from blip_recipe.errors import PushError, RecipeError
from blip_recipe.hub.publishing import COMMIT_MESSAGE, PushResult, preflight, push_command, push_folder
from blip_recipe.models.adapters import is_adapted, quantization_of
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.models.loading import load_finished
from blip_recipe.training.arguments import MAY_CHANGE
from blip_recipe.training.score_arguments import SCORE_MODELS
from blip_recipe.training.speed import TimedTrainer
from blip_recipe.training.tables import TableCallback, join_texts, keep_logs_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import BlipProcessor

    from blip_recipe.card.facts import Kind, TaskWords
    from blip_recipe.data.checks import SkippedRow
    from blip_recipe.models.stock import StockModel
    from blip_recipe.training.tables import Cell
    from blip_recipe.training.training_arguments import BlipTrainingArguments

logger = logging.getLogger(__name__)

BASELINE = "baseline"
"""The prefix of the base model's metrics, which cards compare with those of the trained model."""


class PublishingTrainer(TimedTrainer):
    """A trainer that writes a model card and pushes model and card in one commit.

    Attributes:
        task: Names and texts of the task, for cards and messages.
        model_class: The model class, a subclass of `StockModel`.
        processor: The image processor and tokenizer.
        predictions: One record per row of the split that was evaluated last.
        scored_dataset: The split that was evaluated last.
        scored: All evaluated splits by metric prefix, in the order of evaluation.
        results: The metrics of each evaluated split, for the current weights.
        train_counts: Numbers of rows and texts that were read from a stream.
        skipped: Rows of a stream that could not be used.
        card: The callback that records the training for the card.
        sources: Base model and data for the card; by default read from the model and the data sets.
        original_train_dataset: The `train_dataset` that was passed to the constructor.
        recipe: The content of `recipe.json`; by default made from the training arguments.
    """

    task: ClassVar[TaskWords]
    model_class: ClassVar[type[StockModel]]

    args: BlipTrainingArguments
    processor: BlipProcessor
    scored_dataset: Any
    original_train_dataset: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.predictions: list[dict[str, Any]] = []
        self.scored: dict[str, Any] = {}
        self.results: dict[str, dict[str, float]] = {}
        self.train_counts: tuple[int, int] | None = None
        self.skipped: list[SkippedRow] = []
        self.card = CardCallback()
        self.sources: Sources | None = None
        self.recipe: dict[str, Any] | None = None
        self.is_saved = False
        super().__init__(*args, **kwargs)
        self.add_callback(self.card)
        keep_logs_in(str(self.args.output_dir), self.callback_handler.callbacks)
        if self.args.tracked_pictures:
            self.add_callback(TableCallback(self))

    # Methods that subclasses implement

    @staticmethod
    def predict_text(model: Any, processor: BlipProcessor, row: Mapping[str, Any], settings: DecodingSettings) -> str:
        """The model's text for one row; used to compare the trained with the pushed model."""
        raise NotImplementedError

    @classmethod
    def describe_settings(cls, args: Any, images: int, texts_per_image: float) -> dict[str, str]:
        """The task's own settings for the card, as texts by label.

        Args:
            args: The training arguments.
            images: Rows per optimiser step.
            texts_per_image: Mean number of texts per row.
        """
        return {}

    @classmethod
    def to_display(cls, prediction: Mapping[str, Any]) -> Mapping[str, Any]:
        """Convert a prediction for the card: `caption`, `references`, `scores`, and the key of its row."""
        return prediction

    @classmethod
    def to_table_row(cls, prediction: Mapping[str, Any]) -> dict[str, Cell]:
        """The cells of a prediction in the tables of trackers, by column."""
        texts = {"caption": prediction["caption"], "references": join_texts(prediction["references"])}
        return texts | prediction["scores"]

    @classmethod
    def decoding(cls, args: Any) -> DecodingSettings | None:
        """The settings of text generation; None if the task generates no texts."""
        return None

    # The card

    @property
    def output_dir(self) -> Path:
        """The output directory of the run."""
        return Path(str(self.args.output_dir))

    def create_model_card(self, repo_id: str | None = None) -> Path:  # type: ignore[override]
        """Write the model card `README.md`, its pictures, `predictions.jsonl` and `report.html` into `output_dir`.

        The card shows the scores of the last evaluation of the current weights: by `evaluate`, by `predict`, or during
        training at the step whose weights were kept.

        Args:
            repo_id (`str`, *optional*): The repository that the card names; by default a placeholder.

        Returns:
            The path of the card.
        """
        if not self.is_world_process_zero():
            return self.output_dir / "README.md"
        write_predictions(self.output_dir / PREDICTIONS_FILE, self.predictions)
        draw_training_curves(self.card.log_history, self.output_dir / "training_curves.png")
        results = self._results()
        shown = self._predictions_to_show()
        if shown:
            write_samples(shown, self.scored_dataset.rows, self.output_dir, self.task.key)
        sources = self.sources or self._read_sources()
        facts = gather_facts(
            type(self),
            self.args,
            kind=self._kind(),
            repo_id=repo_id,
            sources=sources,
            results=results,
            predictions=shown,
            counts={**self._count_rows(), **sources.counts},
            callback=self.card,
        )
        self.write_report(ReportFacts.of_card(facts, self.card.log_history))
        return write_card(facts, self.output_dir)

    def _predictions_to_show(self) -> list[dict[str, Any]]:
        """The predictions for the card, with the base model's text for the same row as `before`."""
        shown = [dict(self.to_display(each)) for each in self.predictions]
        for each, old in zip(shown, match_baseline(self.output_dir, self.predictions, self.task) or (), strict=False):
            each["before"] = self.to_display(old)["caption"]
        return shown

    def write_report(self, facts: ReportFacts) -> None:
        """Write the page of the split that was evaluated last. Without `report`, delete that of an earlier run."""
        if not (self.predictions and self.args.report):
            return remove_report(self.output_dir)
        dataset = self.scored_dataset
        find_picture = pictures_of(dataset.rows, getattr(dataset, "resized", None))
        write_report(
            self.output_dir,
            self.predictions,
            self.task,
            facts,
            to_display=self.to_display,
            find_picture=find_picture,
        )
        return None

    def _results(self) -> dict[str, float]:
        """The metrics for the card. A recipe's `all_results.json` also has those from before a resumption."""
        if self.recipe:
            return read_json(self.output_dir / "all_results.json")
        if BASELINE not in self.results:
            # Those of an earlier training in the same directory.
            (self.output_dir / BASELINE_PREDICTIONS_FILE).unlink(missing_ok=True)
        for prefix, metrics in self.results.items():
            self.save_metrics(prefix, metrics)
        last = next(reversed(self.scored), BASELINE)
        return self.results.get(BASELINE, {}) | self.results.get(last, {})

    def _count_rows(self) -> dict[str, tuple[int, int]]:
        """Numbers of rows and texts of the training split and of each evaluated split."""
        counted = {"train": self.train_dataset, **self.scored}
        counts = {
            role: (len(dataset), sum(len(texts or ()) for texts in dataset.rows[self.task.texts]))
            for role, dataset in counted.items()
            if isinstance(dataset, PictureDataset) and role != BASELINE
        }
        return counts | ({"train": self.train_counts} if self.train_counts else {})

    def _kind(self) -> Kind:
        if is_adapted(self.model):
            return "lora"
        return "merged" if self.card.lora else "full"

    def _read_sources(self) -> Sources:
        """The sources that the model and the data sets record."""
        model = self.accelerator.unwrap_model(self.model)
        own_model, own_data = Source("new weights", is_own=True), Source("own data", is_own=True)
        name, found = getattr(model, "name_or_path", ""), source_name(self.original_train_dataset)
        return Sources(
            read_source(name, "model", getattr(model.config, "_commit_hash", None)) if name else own_model,
            read_source(found[0], "dataset", found[1]) if found else own_data,
        )

    # Publishing

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str | None = None,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        tag: str | None = None,
        token: str | None = None,
    ) -> str | None:
        """Push model, card and pictures in one commit, and check that the pushed model gives the same text.

        All processes must call it.

        Args:
            repo_id (`str`, *optional*): `namespace/name`, or a name alone; by default `hub_model_id`, or the last name
                of `output_dir`.
            commit_message (`str`, *optional*): The commit message.
            private (`bool`, *optional*): Whether a new repository is private; by default
                `hub_private_repo`.
            tag (`str`, *optional*): A tag for the commit.
            token (`str`, *optional*): Hub token; by default that of the environment.

        Returns:
            The URL of the repository; None on all processes but the first.

        Raises:
            RecipeError: The name is invalid, or no token has write access; nothing was pushed.
            PushError: The push failed, or the pushed model gives another text. The message says how to finish.
        """
        api = HfApi(token=token)
        private = self.args.hub_private_repo if private is None else private
        if not self.is_saved:
            # Save first, so that nothing is lost if the push is refused.
            self.save_model()
        if not self.is_world_process_zero():
            return None
        name = preflight(repo_id or self.args.hub_model_id, self.output_dir.name, private, api)
        recipe = read_json(self.output_dir / "recipe.json")
        write_json(self.output_dir / "recipe.json", recipe | {"hub_model_id": name})
        self.create_model_card(name)
        return self.publish(name, message=commit_message, private=private, tag=tag, api=api)

    def publish(
        self,
        repo_id: str,
        *,
        message: str | None = None,
        private: bool | None = None,
        tag: str | None = None,
        api: HfApi | None = None,
    ) -> str:
        """Push `output_dir` in one commit, check the pushed model, and return the URL of the repository.

        Raises:
            PushError: The push failed, or the pushed model gives another text.
        """
        result = push_folder(
            self.output_dir,
            repo_id,
            private=self.args.hub_private_repo if private is None else private,
            message=message or COMMIT_MESSAGE,
            tag=tag,
            api=api or HfApi(),
        )
        dataset = self.scored_dataset if self.predictions else self.train_dataset
        if isinstance(dataset, PictureDataset):
            settings = self.decoding(self.args) or DecodingSettings()
            check_published(type(self), self.model, self.processor, dataset.rows[0], settings, result, self.output_dir)
        return result.url


def check_published(
    trainer: type[PublishingTrainer],
    model: Any,
    processor: BlipProcessor,
    row: Mapping[str, Any],
    settings: DecodingSettings,
    result: PushResult,
    output_dir: Path,
) -> None:
    """Check that the pushed revision loads and gives the same text as the trained model for one row.

    Raises:
        PushError: It gives another text, or cannot be loaded.
    """
    repo_id = result.url.split("/", 3)[-1]
    try:
        published, its_processor, its_settings = load_finished(
            repo_id, trainer.model_class, revision=result.revision, device=model.device
        )
        # The pushed model uses SDPA; eager attention differs in the last bits.
        (model.get_base_model() if is_adapted(model) else model).use_sdpa()
        expected = trainer.predict_text(model.eval(), processor, row, settings)
        found = trainer.predict_text(published, its_processor, row, its_settings)
    except (RecipeError, OSError) as error:
        raise PushError(
            f"{result.url} was pushed, but could not be loaded back to check it: {error}\nTry it on a picture with: "
            f"python -m blip_recipe.{trainer.task.command.format(model=repo_id)}"
        ) from error
    if expected != found:
        raise PushError(
            f"{result.url} was pushed, but the model loaded from it gives {found!r} for a picture, and the trained "
            f"model gives {expected!r}. Do not use the pushed model. To push again: "
            + push_command(output_dir, repo_id)
        )


def build_recipe(trainer: PublishingTrainer) -> dict[str, Any]:
    """Build the `recipe.json` of a run without a recipe from the trainer's arguments and model."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    recipe: dict[str, Any] = {"task": trainer.task.name, "model_name_or_path": model.name_or_path}
    for each in dataclasses.fields(args):
        value = getattr(args, each.name)
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        value = getattr(value, "value", value)  # enumerations
        is_plain = isinstance(value, (str, int, float, list))
        # Skip values whose default is None or empty, which Trainer fills in, and flags that are off.
        is_chosen = value != default and (default or (value is not False and value != []))
        if each.init and is_plain and is_chosen and not MAY_CHANGE.fullmatch(each.name):
            recipe[each.name] = value
    if is_adapted(model):
        config: Any = model.active_peft_config
        named = ("lora_alpha", "lora_dropout", "use_dora", "use_rslora")
        recipe |= {"use_peft": True, "lora_r": config.r} | {name: getattr(config, name) for name in named}
        if not isinstance(config.target_modules, str):
            recipe["lora_target_modules"] = sorted(config.target_modules)
    if quantization := quantization_of(model):
        recipe[f"load_in_{quantization}"] = True
    return recipe


def gather_facts(
    trainer: type[PublishingTrainer],
    args: BlipTrainingArguments,
    *,
    kind: Kind,
    repo_id: str | None,
    sources: Sources,
    results: Mapping[str, float],
    predictions: Sequence[Mapping[str, Any]],
    counts: Mapping[str, tuple[int, int]],
    callback: CardCallback,
) -> CardFacts:
    """Gather the facts of a finished run for its card.

    Args:
        trainer: The trainer class.
        args: The training arguments.
        kind: What was saved: a full model, an adapter, or a merged model.
        repo_id: The repository, if it is known.
        sources: Base model and data.
        results: The content of `all_results.json`.
        predictions: The lines of `predictions.jsonl`, converted by `to_display`.
        counts: Numbers of rows and texts of each split, by role.
        callback: The callback that recorded the training.
    """
    usual = ("train", "eval", "test")
    splits = [
        SplitFacts(role, sources.splits.get(role, role), *counts[role], limited=role in sources.limited)
        for role in (*usual, *(each for each in counts if each not in usual))
        if role in counts
    ]
    settings = describe_training(trainer, args, counts.get("train", (0, 0)), callback)
    settings |= describe_adaptation(trainer.task, args, callback)
    return CardFacts(
        kind=kind,
        repo_id=repo_id or PLACEHOLDER,
        base=sources.base.facts(),
        dataset=sources.dataset.facts(),
        dataset_config=sources.dataset_config,
        language=find_language(sources.columns, sources.dataset.card, predictions),
        splits=splits,
        skipped_rows=sources.skipped_rows,
        notes=[*sources.notes, *(args.text_notes or [])],
        decoding=trainer.decoding(args),
        results=result_facts(
            results,
            splits,
            predictions,
            in_characters="score_tokenizer" in args.score_settings(),
            models={
                kind: args.score_settings()[key] for key, kind in SCORE_MODELS.items() if key in args.score_settings()
            },
        ),
        training=TrainingFacts(
            parameters=callback.parameters,
            trained_parameters=callback.trained_parameters,
            quantization=callback.quantization,
            selected_by=args.metric_for_best_model if callback.best_step else None,
            selected_step=callback.best_step or callback.steps,
            steps=callback.steps,
            settings=settings,
            hardware=callback.hardware,
            seconds=callback.seconds,
            peak_memory=callback.peak_memory,
            energy=callback.energy,
            date=datetime.now(UTC).date().isoformat(),
            versions={"Python": platform.python_version()} | installed_versions(PACKAGES),
        ),
        task=trainer.task,
        has_report=bool(predictions) and args.push_report,
    )


def describe_training(
    trainer: type[PublishingTrainer], args: BlipTrainingArguments, train: tuple[int, int], callback: CardCallback
) -> dict[str, str]:
    """The training settings for the card, as texts by label; `train` is (rows, texts) of the training split."""
    parts = (args.train_batch_size, args.gradient_accumulation_steps, args.world_size)
    images = math.prod(parts)
    factors = f"batch {parts[0]} × accumulation {parts[1]} × processes {parts[2]}"
    settings = {f"{trainer.task.row}s per step": f"{images:,} ({factors})"}
    settings |= trainer.describe_settings(args, images, train[1] / max(1, train[0]))
    return settings | {
        "epochs, steps": f"{callback.epochs:g}, {callback.steps:,}",
        "optimiser": _name(args.optim),
        "learning rate": f"{args.learning_rate:g} at its peak, {_name(args.lr_scheduler_type)} schedule",
        "warm-up": f"{args.get_warmup_steps(callback.steps):,} steps",
        "weight decay": f"{args.weight_decay:g} on all trained parameters",
        "gradient clipping": f"norm {args.max_grad_norm:g}" if args.max_grad_norm else "none",
        "precision": "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32",
        "trained parameters": f"{callback.trained_parameters:,} of {callback.parameters:,}",
        "image size": f"{callback.image_size} pixels square",
        "augmentation": "random crop, flip and RandAugment" if args.augmentation == "blip" else "none",
        "seed": str(args.seed),
    }


def describe_adaptation(task: TaskWords, args: BlipTrainingArguments, callback: CardCallback) -> dict[str, str]:
    """The settings of LoRA, quantisation, frozen parts and memory saving that were used."""
    settings: dict[str, str] = {}
    lora = callback.lora
    if lora is not None:
        kinds = [name for name, used in (("DoRA", lora.use_dora), ("rank-stabilised", lora.use_rslora)) if used]
        settings["LoRA"] = ", ".join(
            [f"rank {lora.r}", f"alpha {lora.lora_alpha}", f"dropout {lora.lora_dropout:g}", *kinds]
        )
        # The default `target_modules` is a pattern, not a list of names.
        named = [] if lora.target_modules is None or isinstance(lora.target_modules, str) else lora.target_modules
        settings["LoRA layers"] = ", ".join(map(format_code, sorted(named))) or task.lora_layers
    if callback.quantization:
        settings["frozen base"] = {"8bit": "8 bits (LLM.int8())", "4bit": "4 bits (NF4)"}[callback.quantization]
    if callback.has_frozen_vision and lora is None:
        settings["image encoder"] = "frozen"
    settings |= callback.regularization
    if args.gradient_checkpointing:
        settings["gradient checkpointing"] = "yes"
    if args.torch_compile:
        settings["torch.compile"] = "yes"
    return settings


def _name(value: Any) -> str:
    """The name of an option that is a string or an enumeration."""
    return str(getattr(value, "value", value))
