"""Run the steps of `finetune`, in the order of this file."""

from __future__ import annotations

import logging
import shlex
import signal
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi

from blip_recipe.card.facts import PLACEHOLDER, Sources, read_source
from blip_recipe.card.retarget import retarget
from blip_recipe.data.checks import SKIPPED_FILE, SkippedRow, check_splits, write_skipped_rows
from blip_recipe.data.holdout import describe_held_out
from blip_recipe.data.load import load_splits
from blip_recipe.data.mixture import Mixture, Part
from blip_recipe.data.rows import iterate_column
from blip_recipe.data.storage import BASELINE_PREDICTIONS_FILE, read_json
from blip_recipe.errors import StoppedError
from blip_recipe.hub.checkpoint_upload import CheckpointUploader
from blip_recipe.hub.published_files import PUBLISHED_FILES
from blip_recipe.hub.publishing import check_tag, preflight, push_command, push_folder
from blip_recipe.models.loading import load_finished
from blip_recipe.recipe.building import build_model
from blip_recipe.recipe.checks import check_recipe, check_trackers
from blip_recipe.recipe.logs import set_up_logs
from blip_recipe.recipe.output_dir import RUN, Run, find_run, record_run
from blip_recipe.recipe.plan import format_plan
from blip_recipe.training.checkpoints import clear_output_dir, flush_files, last_checkpoint
from blip_recipe.training.publishing import check_published
from blip_recipe.training.sharding import gather_weights
from blip_recipe.training.streams import plan_steps
from blip_recipe.training.texts import report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datasets import Dataset
    from transformers import BlipProcessor, TrainerCallback

    from blip_recipe.data.arguments import CaptionDataArguments
    from blip_recipe.data.shards import ShardedSplit
    from blip_recipe.recipe.arguments import FinetuneOptions
    from blip_recipe.recipe.recipe import Recipe
    from blip_recipe.training.trainer import BlipTrainer

__all__ = [
    "build_model",
    "check_recipe",
    "check_trackers",
    "claim_output_dir",
    "find_repository",
    "find_run",
    "finish_run",
    "load_dataset_splits",
    "look_at_texts",
    "pin_sources",
    "plan_run",
    "republish",
    "resolve_recipe",
    "score",
    "score_baseline",
    "set_up_logs",
    "train",
]

logger = logging.getLogger(__name__)


@dataclass
class Splits:
    """The data of a run.

    Attributes:
        rows: The rows of each split by role (`train`, `eval`, `test`); of a stream, the first rows.
        skipped: Rows that cannot be used.
        stream: The training split, if it is read while training.
        mixture: The training rows, if they are a mixture of data sets.
        notes: Sentences on the data for the plan and the card.
        unscored: Roles whose rows have no references: the model's texts are written, but not scored.
    """

    rows: dict[str, Dataset]
    skipped: list[SkippedRow]
    stream: ShardedSplit | None = None
    mixture: Mixture | None = None
    notes: Sequence[str] = ()
    unscored: Sequence[str] = ()

    @property
    def train(self) -> Dataset | ShardedSplit | Mixture:
        """The training data."""
        return self.stream or self.mixture or self.rows["train"]

    @property
    def images_per_epoch(self) -> int:
        """The number of images of an epoch; of a stream, that of its first rows."""
        return self.mixture.rows_per_epoch if self.mixture else len(self.rows["train"])

    @property
    def scored_role(self) -> str | None:
        """The split that the finished model is scored on: `test`, else `eval`."""
        return next((role for role in ("test", "eval") if role in self.rows and role not in self.unscored), None)


def find_repository(recipe: Recipe[FinetuneOptions]) -> str | None:
    """Check that the result can be pushed, and return the full name of its repository; `None` without a push.

    Raises:
        RecipeError: The result cannot be pushed.
    """
    training = recipe.training
    check_tag(recipe.options.hub_tag, "hub_tag")
    if not recipe.push_to_hub:
        return None
    return preflight(training.hub_model_id, recipe.output_dir.name, training.hub_private_repo, HfApi())


def pin_sources(recipe: Recipe[FinetuneOptions], run: Run) -> Sources:
    """Pin the base model and the data set to the commits that the run started with, and return them."""
    model, data = recipe.model, recipe.data
    base = read_source(model.model_name_or_path, "model", run.model_revision or model.model_revision)
    dataset = read_source(str(data.dataset_name), "dataset", run.dataset_revision or data.dataset_revision)
    model.model_revision, data.dataset_revision = base.revision, dataset.revision
    if data.mixture:
        cast("CaptionDataArguments", data).dataset_mixture = run.mixture or pin_mixture(data.mixture)
    return Sources(
        base,
        dataset,
        dataset_config=data.dataset_config_name,
        splits={role: str(name) for role, (name, _) in data.splits().items()}
        | ({"train": "the mixture"} if data.mixture else {}),
        columns=getattr(data, "caption_column", None) or (),
    )


def pin_mixture(parts: Sequence[Part]) -> dict[str, Any]:
    """The key `dataset_mixture` with the data sets of the Hub pinned to their present commits."""
    pinned = {}
    for part in parts:
        source = read_source(part.keys["dataset_name"], "dataset", part.keys.get("dataset_revision"))
        revision = {"dataset_revision": source.revision} if source.revision else {}
        pinned[part.name] = {"weight": part.weight, **part.keys, **revision}
    return pinned


def load_dataset_splits(recipe: Recipe[FinetuneOptions]) -> Splits:
    """Load the splits that the recipe names, and check every row.

    Raises:
        RecipeError: There is no such data set or split, or a row cannot be used.
    """
    with recipe.training.main_process_first(desc="reading the data"):
        found = load_splits(recipe.data, recipe.task.load_split, recipe.task.open_stream)
        stream = recipe.task.open_stream(recipe.data) if recipe.data.is_streamed else None
    checked = check_splits(found, recipe.data, recipe.task.validate_row)
    rows = checked.rows
    if stream:
        if not recipe.data.allow_shared_images:
            stream = replace(stream, scored=checked.digests)
        plan_steps(recipe.training, stream.images)
        rows["train"] = stream.sample()
    unscored = [role for role, each in rows.items() if not recipe.task.has_references(each)]
    mixture = Mixture(rows["train"], recipe.data.mixture) if recipe.data.mixture else None
    notes = [*([mixture.describe()] if mixture else []), *describe_held_out(recipe.data), *checked.shared]
    return Splits(rows, checked.skipped, stream, mixture, notes, unscored)


def look_at_texts(recipe: Recipe[FinetuneOptions], splits: Splits, model: Any, processor: BlipProcessor) -> None:
    """Look at the tokenised texts, warn of what does not fit, and set the lengths that the recipe leaves open."""
    scored = {role: rows for role, rows in splits.rows.items() if role != "train"}
    positions = model.config.text_config.max_position_embeddings
    notes = recipe.trainer.look_at_texts(recipe.training, processor.tokenizer, splits.rows["train"], scored, positions)
    report(notes, recipe.training)


def plan_run(
    recipe: Recipe[FinetuneOptions], splits: Splits, model: Any, processor: BlipProcessor, repo_id: str | None
) -> str:
    """Describe the run, one fact a line; turns on gradient checkpointing if a step would not fit in memory."""
    peak = recipe.trainer.estimate_memory(model, recipe.training, splits.rows["train"], processor)
    counts = count_rows(recipe, splits)
    return format_plan(
        recipe,
        model,
        counts,
        repo_id,
        peak,
        images_per_epoch=splits.images_per_epoch,
        stream=splits.stream,
        skipped=len(splits.skipped),
        notes=splits.notes,
    )


def count_rows(recipe: Recipe[FinetuneOptions], splits: Splits) -> dict[str, tuple[int, int]]:
    """The numbers of rows and texts of each split, by role."""
    texts = recipe.trainer.task.texts
    found = splits.rows.items()
    return {role: (len(rows), sum(len(each or ()) for each in iterate_column(rows, texts))) for role, rows in found}


@contextmanager
def claim_output_dir(
    recipe: Recipe[FinetuneOptions], splits: Splits, sources: Sources, repo_id: str | None
) -> Iterator[list[TrainerCallback]]:
    """Record which recipe owns the output directory, and delete the run in it if the recipe asks for that.

    Yields:
        The callbacks that publish checkpoints, if the recipe asks for that.
    """
    resolved = resolve_recipe(recipe, sources, repo_id)
    with recipe.training.main_process_first(local=False, desc="claiming the output directory"):
        if recipe.training.process_index == 0:
            if recipe.options.overwrite_output_dir:
                clear_output_dir(recipe.output_dir, (*PUBLISHED_FILES, RUN))
            record_run(recipe, resolved, finished=False)
            write_skipped_rows(recipe.output_dir / SKIPPED_FILE, splits.skipped)
    if repo_id is None or not recipe.pushes_checkpoints or recipe.training.process_index != 0:
        yield []
        return
    private = recipe.training.hub_private_repo
    with CheckpointUploader(recipe.output_dir, repo_id, resolved, private=private, api=HfApi()) as uploader:
        yield [uploader]


def resolve_recipe(recipe: Recipe[FinetuneOptions], sources: Sources, repo_id: str | None) -> dict[str, Any]:
    """The recipe to record: with the full name of the repository, the pinned commits and the fitted lengths."""
    fitted = {key: getattr(recipe.training, key) for key in recipe.training.fitted_keys}
    return recipe.to_json(
        hub_model_id=repo_id,
        model_revision=sources.base.revision,
        dataset_revision=sources.dataset.revision,
        dataset_mixture=getattr(recipe.data, "dataset_mixture", None),
        **fitted,
    )


def score_baseline(trainer: BlipTrainer, recipe: Recipe[FinetuneOptions], splits: Splits, run: Run) -> None:
    """Score the base model before training, once a run, on the split that the finished model is scored on."""
    names = {f"baseline_{name}" for name in ["loss", *recipe.training.scores()]}
    texts = recipe.output_dir / BASELINE_PREDICTIONS_FILE
    done = bool(run.given) and texts.exists() and names <= read_json(recipe.output_dir / "all_results.json").keys()
    # The other processes must have looked before the first one deletes or writes the file.
    trainer.accelerator.wait_for_everyone()
    if not done and trainer.is_world_process_zero():
        texts.unlink(missing_ok=True)
    if splits.scored_role and not done:
        logger.info("Scoring the untouched base model")
        rows = splits.rows[splits.scored_role]
        trainer.save_metrics("baseline", trainer.evaluate(rows, metric_key_prefix="baseline"))


def train(trainer: BlipTrainer, recipe: Recipe[FinetuneOptions]) -> None:
    """Train; resume from the newest complete checkpoint if there is one.

    Raises:
        StoppedError: A signal asked the run to stop; a checkpoint was saved.
    """
    checkpoint: list[Any] = [recipe.training.resume_from_checkpoint]
    if not checkpoint[0] and trainer.is_world_process_zero():
        checkpoint = [last_checkpoint(recipe.output_dir)]
    broadcast_object_list(checkpoint)
    with trainer.stop_signals:
        result = trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint[0] else None)
    if trainer.must_stop:
        raise StoppedError(trainer.stop_signals.received or signal.SIGTERM)
    trainer.save_metrics("train", result.metrics | trainer.card.speed(trainer.args))
    state = trainer.state
    kept_step = state.best_global_step if trainer.args.load_best_model_at_end else state.global_step
    for entry in state.log_history:
        if "eval_loss" in entry and entry["step"] == kept_step:
            trainer.save_metrics("eval", {key: value for key, value in entry.items() if key != "step"})
    trainer.save_state()


def score(trainer: BlipTrainer, splits: Splits) -> None:
    """Score the finished model, after it has written the texts of splits without references."""
    for unscored in splits.unscored:
        trainer.evaluate(splits.rows[unscored], metric_key_prefix=unscored)
    role = splits.scored_role
    if role:
        logger.info("Scoring the finished model")
        metrics = trainer.evaluate(splits.rows[role], metric_key_prefix=role)
        trainer.log_metrics(role, metrics)
        trainer.save_metrics(role, metrics)


def finish_run(trainer: BlipTrainer, recipe: Recipe[FinetuneOptions], splits: Splits, repo_id: str | None) -> None:
    """Write the model card, record that the run is finished, and push the result.

    Raises:
        PushError: The push failed, or the pushed model gives other texts than the scored one.
    """
    left_out = [*splits.skipped, *trainer.skipped]
    gather_weights(trainer.model)
    if not trainer.is_world_process_zero():
        return
    write_skipped_rows(recipe.output_dir / SKIPPED_FILE, left_out)
    counts = count_rows(recipe, splits)
    if splits.stream:
        del counts["train"]
    limits = {role: limit for role, (_, limit) in recipe.data.splits().items()}
    trainer.sources = replace(
        cast("Sources", trainer.sources),
        counts=counts,
        limited=[role for role, (rows, _) in counts.items() if rows == limits[role]],
        skipped_rows=len(left_out),
        notes=splits.notes,
    )
    trainer.create_model_card(repo_id)
    flush_files(recipe.output_dir)
    record_run(recipe, cast("dict[str, Any]", trainer.recipe), finished=True)
    print(format_next_steps(recipe, repo_id))
    if repo_id:
        print(trainer.publish(repo_id, tag=recipe.options.hub_tag))


def format_next_steps(recipe: Recipe[FinetuneOptions], repo_id: str | None) -> str:
    """Suggest what to do with the result, one command a line."""
    folder = shlex.quote(str(recipe.output_dir))
    private = recipe.training.hub_private_repo
    local_base = recipe.model.use_peft and Path(recipe.model.model_name_or_path).expanduser().exists()
    command = recipe.trainer.task.command
    steps = {
        "read": f"{folder}/README.md (the model card)",
        command.split()[0]: f"python -m blip_recipe.{command.format(model=folder)}",
        "publish": push_command(recipe.output_dir, repo_id or PLACEHOLDER, private=private, tag=recipe.options.hub_tag),
    }
    if local_base and not recipe.model.merge_adapter:
        # Only a merged model can be published: the base is not on the Hub.
        steps["publish"] = f"python -m blip_recipe.merge {folder} {folder}_merged, then push {folder}_merged"
    return "\n".join(
        [f"The model is in {folder}. What to do next:", *(f"  {name:<9}{what}" for name, what in steps.items())]
    )


def republish(recipe: Recipe[FinetuneOptions], splits: Splits, repo_id: str | None) -> None:
    """Push the result of a finished run again, with the repository named in its card.

    Raises:
        PushError: The push failed, or the pushed model gives other texts than the scored one.
    """
    if recipe.training.process_index != 0:
        return
    logger.info("%s holds the finished run of this recipe: nothing is trained or scored again", recipe.output_dir)
    if repo_id:
        retarget(recipe.output_dir, repo_id)
    print(format_next_steps(recipe, repo_id))
    if repo_id:
        model, processor, settings = load_finished(
            str(recipe.output_dir), recipe.trainer.model_class, device=recipe.training.device
        )
        result = push_folder(
            recipe.output_dir,
            repo_id,
            private=recipe.training.hub_private_repo,
            tag=recipe.options.hub_tag,
            api=HfApi(),
        )
        row = splits.rows[splits.scored_role or "train"][0]
        check_published(recipe.trainer, model, processor, row, settings, result, recipe.output_dir)
        print(result.url)
