"""Fine-tune BLIP from one recipe: read, train, score, save, describe, push.

python -m blip_recipe.finetune recipes/shapes_tiny.json
accelerate launch -m blip_recipe.finetune recipes/coco_lora.json --num_train_epochs 3
"""

from __future__ import annotations

import logging
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.card.rendering import PLACEHOLDER
from blip_recipe.data.storage import read_json, write_json, write_predictions
from blip_recipe.errors import PushError, RecipeError, StoppedError, run_command
from blip_recipe.recipe.output_dir import RUN, Run, find_run, note_run
from blip_recipe.recipe.parsing import FinetuneOptions, Recipe, check_recipe, read_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from transformers import BlipProcessor

    from blip_recipe.card.callback import CardCallback
    from blip_recipe.card.gathering import Source
    from blip_recipe.data.checks import SkippedRow
    from blip_recipe.hub.publishing import PushResult
    from blip_recipe.training.task import Task
    from blip_recipe.training.trainer import BlipTrainer

# By its own name also where it is run as `__main__`, whose messages would be dropped.
logger = logging.getLogger("blip_recipe.finetune")


def main(argv: list[str] | None = None) -> None:
    """Do the main job, in order; what can be wrong is found before the first step."""
    recipe = read_recipe(
        FinetuneOptions,
        prog="python -m blip_recipe.finetune",
        description="Fine-tune BLIP for captions, answers or retrieval from one recipe, and publish the result.",
        recipe_needed=True,
        argv=argv,
    )
    check_recipe(recipe)
    run = find_run(recipe)

    from blip_recipe.card.callback import CardCallback
    from blip_recipe.data import check_splits, load_splits
    from blip_recipe.data.shards import open_stream
    from blip_recipe.data.streaming import caption_stream
    from blip_recipe.hub.checkpoint_upload import checkpoint_uploads
    from blip_recipe.recipe.logs import set_up_logs
    from blip_recipe.recipe.plan import format_plan
    from blip_recipe.training.checkpoints import flush_files
    from blip_recipe.training.embeddings import keep_embeddings
    from blip_recipe.training.sharding import gather_weights
    from blip_recipe.training.streams import plan_steps
    from blip_recipe.training.task import find_task
    from blip_recipe.training.trainer import build_trainer

    set_up_logs(recipe.training)
    task = find_task(recipe.objective.task)
    task.check(recipe)
    repo_id = find_repository(recipe) if recipe.push_to_hub else None
    sources = pin_sources(recipe, run)
    with recipe.training.main_process_first(desc="reading the data"):
        found = load_splits(recipe.data, task.load_split)
        stream = open_stream(recipe.data) if recipe.data.is_streamed else None
    splits, skipped = check_splits(found, recipe.data, task.row_fault)
    if stream:
        plan_steps(recipe.training, stream.images)
        splits["train"] = stream.sample()
    if run.finished and not recipe.options.dry_run:
        finish_again(recipe, task, repo_id, splits)
        return
    model, processor = build(recipe, task, splits["train"])
    peak = task.choose_checkpointing(model, recipe, splits["train"], processor)
    counts = {role: (len(rows), sum(map(len, rows[task.texts]))) for role, rows in splits.items()}
    if recipe.options.dry_run:
        print(format_plan(recipe, model, counts, repo_id, peak, stream, len(skipped)))
        return
    datasets = task.datasets(splits, recipe, processor)
    if stream:
        datasets["train"] = caption_stream(stream, processor, recipe.training)
    card = CardCallback()
    resolved = resolve(recipe, repo_id, sources)
    with (
        task.scorer(recipe) as scorer,
        checkpoint_uploads(recipe, repo_id, resolved) as uploads,
    ):
        take_output_dir(recipe, resolved, skipped)
        trainer = build_trainer(recipe, model, processor, scorer, datasets, callbacks=[card, *uploads])
        if recipe.data.cache_image_embeds:
            keep_embeddings(trainer, datasets)
        score_baseline(trainer, recipe, datasets, run)
        train(trainer, recipe, card)
        if trainer.progress:
            counts["train"] = count_stream(trainer, recipe, skipped, card)
        if recipe.model.merge_adapter:
            trainer = merge(trainer, recipe, processor, scorer, datasets)
            if recipe.data.cache_image_embeds:
                # A quantised image encoder is another one than the merged model's.
                keep_embeddings(trainer, datasets)
        save_model(trainer, recipe)
        score(trainer, datasets)
    gather_weights(trainer.model)
    if trainer.is_world_process_zero():
        describe(trainer, recipe, task, counts, sources, card, repo_id)
        flush_files(recipe.output_dir)
        note_run(recipe, resolved, finished=True)
        print(format_next_steps(recipe, repo_id))
        if repo_id:
            push(trainer.model, recipe, task, repo_id, splits)


def find_repository(recipe: Recipe[FinetuneOptions]) -> str:
    """The full name of the repository that the result will be pushed to, once it is sure that it can be."""
    from huggingface_hub import HfApi

    from blip_recipe.hub.publishing import check_tag, preflight

    training = recipe.training
    check_tag(recipe.options.hub_tag, "hub_tag")
    return preflight(training.hub_model_id, recipe.output_dir.name, training.hub_private_repo, HfApi())


def pin_sources(recipe: Recipe[FinetuneOptions], run: Run) -> tuple[Source, Source]:
    """Where model and data come from; what is loaded from the Hub is loaded at the commit that the run began with."""
    from blip_recipe.card.gathering import read_source

    model, data = recipe.model, recipe.data
    base = read_source(model.model_name_or_path, "model", run.model_revision or model.model_revision)
    dataset = read_source(str(data.dataset_name), "dataset", run.dataset_revision or data.dataset_revision)
    model.model_revision, data.dataset_revision = base.revision, dataset.revision
    return base, dataset


def build(recipe: Recipe[FinetuneOptions], task: Task, rows: Dataset) -> tuple[Any, BlipProcessor]:
    """The model that is trained on `rows`, and its processor, once it is sure that the recipe fits them.

    Raises:
        RecipeError: There is no such model, or it cannot do what the recipe says.
    """
    from transformers import set_seed

    from blip_recipe.models.loading import build_model
    from blip_recipe.recipe.checks import check_fits, check_quantisable
    from blip_recipe.training.embeddings import check_frozen

    set_seed(recipe.training.seed)
    check_quantisable(recipe, task.model_class)
    model, processor = build_model(recipe.model, recipe.generation, task.words(rows, recipe.data), task)
    check_fits(recipe, model, processor)
    if recipe.data.cache_image_embeds:
        check_frozen(model)
    return model, processor


def resolve(recipe: Recipe[FinetuneOptions], repo_id: str | None, sources: tuple[Source, Source]) -> dict[str, Any]:
    """The recipe to run again, with what was found out for it: the repository's full name and the pinned commits."""
    base, dataset = sources
    return recipe.to_json(hub_model_id=repo_id, model_revision=base.revision, dataset_revision=dataset.revision)


def take_output_dir(recipe: Recipe[FinetuneOptions], resolved: dict[str, Any], skipped: list[SkippedRow]) -> None:
    """Note whose the output directory is from now on, and which rows are left out; start afresh on request."""
    from blip_recipe.data.checks import SKIPPED_FILE, write_skipped_rows
    from blip_recipe.hub.published_files import PUBLISHED_FILES
    from blip_recipe.training.checkpoints import clear_output_dir

    with recipe.training.main_process_first(local=False, desc="taking the output directory"):
        if recipe.training.process_index == 0:
            if recipe.options.overwrite_output_dir:
                clear_output_dir(recipe.output_dir, (*PUBLISHED_FILES, RUN))
            note_run(recipe, resolved, finished=False)
            write_skipped_rows(recipe.output_dir / SKIPPED_FILE, skipped)


def count_stream(
    trainer: BlipTrainer, recipe: Recipe[FinetuneOptions], skipped: list[SkippedRow], card: CardCallback
) -> tuple[int, int]:
    """Images and captions of a stream that were trained on; what it left out is noted."""
    from blip_recipe.data.checks import SKIPPED_FILE, write_skipped_rows

    count, card.epochs = trainer.progress.totals(card.epochs)
    everything = [*skipped, *trainer.progress.all_skipped()]
    if trainer.is_world_process_zero():
        write_skipped_rows(recipe.output_dir / SKIPPED_FILE, everything)
    return count


def score_baseline(trainer: BlipTrainer, recipe: Recipe[FinetuneOptions], datasets: dict[str, Any], run: Run) -> None:
    """Score the untouched base model, once a run, on the split that the finished model is scored on."""
    role = scored_role(datasets)
    names = {f"baseline_{name}" for name in ["loss", *recipe.generation.score_names()]}
    done = bool(run.given) and names <= read_json(recipe.output_dir / "all_results.json").keys()
    if role and not done:
        logger.info("Scoring the untouched base model")
        trainer.save_metrics("baseline", trainer.evaluate(datasets[role], metric_key_prefix="baseline"))


def scored_role(datasets: Mapping[str, Any]) -> str | None:
    """The split that finished models are scored on: `test`, or `eval` where there is no other."""
    return next((role for role in ("test", "eval") if role in datasets), None)


def train(trainer: BlipTrainer, recipe: Recipe[FinetuneOptions], card: CardCallback) -> None:
    """Train, from the newest whole checkpoint where there is one.

    Raises:
        StoppedError: A batch system asked the run to stop; what was trained is in a checkpoint.
    """
    from accelerate.utils import broadcast_object_list
    from transformers import set_seed

    from blip_recipe.training.checkpoints import last_checkpoint

    # The random state is the same whether or not this process scored the baseline first.
    set_seed(trainer.args.seed)
    checkpoint: list[Any] = [recipe.training.resume_from_checkpoint]
    if not checkpoint[0] and trainer.is_world_process_zero():
        checkpoint = [last_checkpoint(recipe.output_dir)]
    broadcast_object_list(checkpoint)
    with trainer.stop_signals:
        result = trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint[0] else None)
    if trainer.must_stop:
        raise StoppedError(trainer.stop_signals.received or signal.SIGTERM)
    trainer.save_metrics("train", result.metrics | card.speed(trainer.args))
    state = trainer.state
    kept_step = state.best_global_step if trainer.args.load_best_model_at_end else state.global_step
    for entry in state.log_history:
        if "eval_loss" in entry and entry["step"] == kept_step:
            trainer.save_metrics("eval", {key: value for key, value in entry.items() if key != "step"})
    trainer.save_state()


def merge(trainer: BlipTrainer, recipe: Recipe[FinetuneOptions], *parts: Any) -> BlipTrainer:
    """Fold the trained adapter into the base in full precision; what follows scores and saves the result."""
    from blip_recipe.models.loading import merged_model
    from blip_recipe.training.task import find_task
    from blip_recipe.training.trainer import build_trainer

    adapter = recipe.output_dir / "adapter"
    trainer.save_model(str(adapter))
    trainer.accelerator.wait_for_everyone()
    model, _ = merged_model(str(adapter), find_task(recipe.objective.task).model_class)
    if model.can_generate():
        model.generation_config.update(**recipe.generation.generate_kwargs(), _from_model_config=False)
    merged = build_trainer(recipe, model, *parts)
    merged.state = trainer.state
    return merged


def save_model(trainer: BlipTrainer, recipe: Recipe[FinetuneOptions]) -> None:
    """Save the finished model, without what an earlier run of the other kind left in its place."""
    if trainer.is_world_process_zero():
        plain = recipe.model.merge_adapter or not recipe.model.use_peft
        for pattern in ("adapter_*",) if plain else ("config.json", "generation_config.json", "model*.safetensors*"):
            for path in recipe.output_dir.glob(pattern):
                path.unlink()
    trainer.save_model()


def score(trainer: BlipTrainer, datasets: dict[str, Any]) -> None:
    """Score the finished model."""
    role = scored_role(datasets)
    if role:
        logger.info("Scoring the finished model")
        metrics = trainer.evaluate(datasets[role], metric_key_prefix=role)
        trainer.log_metrics(role, metrics)
        trainer.save_metrics(role, metrics)


def describe(
    trainer: BlipTrainer,
    recipe: Recipe[FinetuneOptions],
    task: Task,
    counts: Mapping[str, tuple[int, int]],
    sources: tuple[Source, Source],
    card: CardCallback,
    repo_id: str | None,
) -> None:
    """Write what the run leaves beside the model: predictions, recipe, pictures and, last, the card."""
    from blip_recipe.card.gathering import gather_facts
    from blip_recipe.card.pictures import draw_training_curves, write_samples
    from blip_recipe.card.rendering import write_card

    model, output_dir = recipe.model, recipe.output_dir
    base, dataset = sources
    write_json(output_dir / "recipe.json", resolve(recipe, repo_id, sources))
    write_predictions(output_dir / "predictions.jsonl", trainer.predictions)
    draw_training_curves(card.log_history, output_dir / "training_curves.png")
    shown = [task.show(each) for each in trainer.predictions]
    if shown:
        write_samples(shown, trainer.scored_dataset.rows, output_dir, task.key)
    facts = gather_facts(
        recipe,
        kind="merged" if model.merge_adapter else "lora" if model.use_peft else "full",
        repo_id=repo_id,
        results=read_json(output_dir / "all_results.json"),
        predictions=shown,
        counts=counts,
        callback=card,
        base=base,
        dataset=dataset,
        tokenized_with_java=getattr(trainer.scorer, "java", None) is not None,
    )
    write_card(facts, output_dir)


def format_next_steps(recipe: Recipe[FinetuneOptions], repo_id: str | None) -> str:
    """What a person may want to do with the result, one thing a line."""
    from blip_recipe.hub.publishing import push_command
    from blip_recipe.training.task import find_task

    task = find_task(recipe.objective.task)
    folder = shlex.quote(str(recipe.output_dir))
    private = recipe.training.hub_private_repo
    local_base = recipe.model.use_peft and Path(recipe.model.model_name_or_path).expanduser().exists()
    steps = {
        "read": f"{folder}/README.md (the model card)",
        task.try_it.split()[0]: f"python -m blip_recipe.{task.try_it.format(model=folder)}",
        "publish": push_command(recipe.output_dir, repo_id or PLACEHOLDER, private=private, tag=recipe.options.hub_tag),
    }
    if local_base and not recipe.model.merge_adapter:
        # Only a merged model can be published: nobody else has this base.
        steps["publish"] = f"python -m blip_recipe.merge {folder} {folder}_merged, then push {folder}_merged"
    return "\n".join(
        [f"The model is in {folder}. What to do next:", *(f"  {name:<9}{what}" for name, what in steps.items())]
    )


def finish_again(
    recipe: Recipe[FinetuneOptions], task: Task, repo_id: str | None, splits: Mapping[str, Dataset]
) -> None:
    """Do what a finished run may still want: let the card speak of the repository, and publish it."""
    from blip_recipe.models.loading import load_captioner
    from blip_recipe.push import retarget

    if recipe.training.process_index != 0:
        return
    logger.info("%s holds the finished run of this recipe: nothing is trained or scored again", recipe.output_dir)
    if repo_id:
        retarget(recipe.output_dir, repo_id)
    print(format_next_steps(recipe, repo_id))
    if repo_id:
        device = recipe.training.device
        model, _, _ = load_captioner(str(recipe.output_dir), device=device, model_class=task.model_class)
        push(model, recipe, task, repo_id, splits)


def push(model: Any, recipe: Recipe[FinetuneOptions], task: Task, repo_id: str, splits: Mapping[str, Dataset]) -> None:
    """Publish the output directory in one commit, and see that what was published says the same as before.

    Raises:
        PushError: It was not pushed, or says something else than the model that was scored.
    """
    from huggingface_hub import HfApi

    from blip_recipe.hub.publishing import push_folder
    from blip_recipe.push import COMMIT_MESSAGE

    result = push_folder(
        recipe.output_dir,
        repo_id,
        private=recipe.training.hub_private_repo,
        message=COMMIT_MESSAGE,
        tag=recipe.options.hub_tag,
        api=HfApi(),
    )
    try:
        check_published(model, recipe, task, repo_id, result, splits.get("test") or splits["train"])
    except (RecipeError, OSError) as error:
        raise PushError(
            f"{result.url} was pushed, but could not be loaded back to check it: {error}\nSee what it says of a "
            f"picture with: python -m blip_recipe.{task.try_it.format(model=repo_id)}"
        ) from error
    print(result.url)


def check_published(
    model: Any, recipe: Recipe[FinetuneOptions], task: Task, repo_id: str, result: PushResult, rows: Dataset
) -> None:
    """Load the published revision and try it on one row: it must say what the trained model says.

    Raises:
        PushError: It says something else.
    """
    from blip_recipe.hub.publishing import push_command
    from blip_recipe.models.loading import CaptionSettings, load_captioner

    published, processor, settings = load_captioner(
        repo_id, revision=result.revision, device=recipe.training.device, model_class=task.model_class
    )
    ours = CaptionSettings.of(recipe)
    # As the published one computes attention, whose results differ in the last bits.
    getattr(model, "get_base_model", lambda: model)().use_sdpa()
    trained_says, published_says = (
        task.say(each.eval(), processor, rows[0], how) for each, how in ((model, ours), (published, settings))
    )
    if trained_says != published_says:
        raise PushError(
            f"{result.url} was pushed, but the model loaded from it says {published_says!r} of a picture of which "
            f"the trained model says {trained_says!r}. Do not rely on it; pushing again is: "
            + push_command(recipe.output_dir, repo_id)
        )


if __name__ == "__main__":
    run_command(main)
