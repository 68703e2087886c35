"""Fine-tune BLIP from one recipe: train, score, save, describe and push.

python -m blip_recipe.finetune recipes/shapes_tiny.json
accelerate launch -m blip_recipe.finetune recipes/coco_lora.json --num_train_epochs 3
"""

from __future__ import annotations

from blip_recipe.errors import run_command
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.parsing import read_recipe

PROG = "python -m blip_recipe.finetune"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run the recipe; every error in the recipe or the data is found before the first training step."""
    recipe = read_recipe(
        FinetuneOptions,
        prog=prog,
        description="Fine-tune BLIP for captions, answers or retrieval from one recipe, and publish the result.",
        recipe_needed=True,
        argv=argv,
    )

    from blip_recipe.recipe import job

    job.check_recipe(recipe)
    job.check_trackers(recipe.training)
    run = job.find_run(recipe)
    job.set_up_logs(recipe.training)
    repo_id = job.find_repository(recipe)
    sources = job.pin_sources(recipe, run)
    splits = job.load_dataset_splits(recipe)
    if run.finished and not recipe.options.dry_run:
        return job.republish(recipe, splits, repo_id)
    model, processor = job.build_model(recipe, splits.rows["train"])
    job.look_at_texts(recipe, splits, model, processor)
    plan = job.plan_run(recipe, splits, model, processor, repo_id)
    if recipe.options.dry_run:
        return print(plan)
    with job.claim_output_dir(recipe, splits, sources, repo_id) as callbacks:
        trainer = recipe.trainer(
            model,
            recipe.training,
            splits.train,
            splits.rows.get("eval"),
            processing_class=processor,
            callbacks=callbacks,
        )
        trainer.sources, trainer.recipe = sources, job.resolve_recipe(recipe, sources, repo_id)
        job.score_baseline(trainer, recipe, splits, run)
        job.train(trainer, recipe)
        trainer = trainer.merge() if recipe.model.merge_adapter else trainer
        trainer.save_model()
        job.score(trainer, splits)
    return job.finish_run(trainer, recipe, splits, repo_id)


if __name__ == "__main__":
    run_command(main)
