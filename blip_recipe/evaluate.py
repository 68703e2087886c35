"""Score a model on a split, or captions that are already there.

python -m blip_recipe.evaluate --model outputs/coco_lora --dataset_name jxie/flickr8k --eval_split test
python -m blip_recipe.evaluate --predictions captions.json --references captions_val2014.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.checks import check_metrics
from blip_recipe.recipe.parsing import EvaluateOptions, Recipe, read_recipe
from blip_recipe.training.task import recorded_task


def main(argv: list[str] | None = None) -> None:
    """Score a model on a split, or a file of captions."""
    recipe = read_recipe(
        EvaluateOptions,
        prog="python -m blip_recipe.evaluate",
        description="Score a model on a split of a data set, or a file of captions against their references.",
        recipe_needed=False,
        argv=argv,
    )
    if recipe.options.predictions:
        score_file(recipe)
    else:
        score_model(recipe)


def score_file(recipe: Recipe[EvaluateOptions]) -> None:
    """Score the captions of `--predictions` against `--references`."""
    from blip_recipe.metrics import CaptionScorer
    from blip_recipe.metrics.files import check_same_images, read_predictions, read_references

    check_metrics(recipe)
    assert recipe.options.predictions is not None
    predictions = read_predictions(Path(recipe.options.predictions))
    references = read_references(Path(recipe.options.references or recipe.options.predictions))
    check_same_images(predictions, references)
    with CaptionScorer(recipe.generation.metrics) as scorer:
        scores = scorer.score(predictions, references)
    records = [
        {
            "image_id": image_id,
            "caption": caption,
            "references": references[image_id],
            "scores": scores.per_image[image_id],
        }
        for image_id, caption in predictions.items()
    ]
    report(recipe, {f"eval_{name}": value for name, value in scores.corpus.items()}, records)


def score_model(recipe: Recipe[EvaluateOptions]) -> None:
    """Score what a model directory or Hub id says of `--eval_split`."""
    if recipe.data.dataset_name is None or recipe.data.eval_split is None:
        raise RecipeError("dataset_name and eval_split say what to score; --predictions scores a file instead.")

    from blip_recipe.data import check_splits, write_skipped_rows
    from blip_recipe.data.checks import SKIPPED_FILE
    from blip_recipe.models.loading import load_captioner, read_repository_json
    from blip_recipe.recipe.logs import set_up_logs
    from blip_recipe.training.task import find_task
    from blip_recipe.training.trainer import build_trainer

    set_up_logs(recipe.training)
    name, revision = recipe.model.model_name_or_path, recipe.model.model_revision
    take_recorded_settings(recipe, read_repository_json(name, "recipe.json", revision=revision))
    task = find_task(recipe.objective.task)
    with recipe.training.main_process_first(desc="reading the data"):
        rows = task.load_split(recipe.data, recipe.data.eval_split, max_samples=recipe.data.max_eval_samples)
    splits, skipped = check_splits({"eval": rows}, recipe.data, task.row_fault)
    model, processor, _ = load_captioner(
        name,
        revision=revision,
        quantization=recipe.model.quantization or "recorded",
        trust_remote_code=recipe.model.trust_remote_code,
        model_class=task.model_class,
    )
    datasets = task.datasets(splits, recipe, processor)
    with task.scorer(recipe) as scorer:
        trainer = build_trainer(recipe, model, processor, scorer, datasets)
        metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        report(recipe, metrics, trainer.predictions)
        write_skipped_rows(recipe.output_dir / SKIPPED_FILE, skipped)


RECORDED = {
    "data": ("prompt", "normalize_captions", "max_caption_length"),
    "generation": ("generation_num_beams", "generation_max_length", "generation_min_length"),
    "objective": ("rerank_top_k",),
    "training": ("label_smoothing_factor",),
}
"""Keys of a model's own recipe that its scores depend on."""


def take_recorded_settings(recipe: Recipe[EvaluateOptions], recorded: dict[str, Any]) -> None:
    """Score as the model was scored (`recorded`: its `recipe.json`), in whatever the command line leaves open."""
    if "task" not in recipe.given:
        recipe.take_task(recorded_task(recorded))
    check_metrics(recipe)
    for part, keys in RECORDED.items():
        for key in keys:
            if key in recorded and key not in recipe.given:
                setattr(getattr(recipe, part), key, recorded[key])


def report(recipe: Recipe[EvaluateOptions], results: dict[str, float], records: list[dict[str, Any]]) -> None:
    """Write `all_results.json` and `predictions.jsonl` into `output_dir`, and the scores on stdout."""
    from blip_recipe.data.storage import write_json, write_predictions

    write_json(recipe.output_dir / "all_results.json", dict(sorted(results.items())))
    write_predictions(recipe.output_dir / "predictions.jsonl", records)
    names = [name for name in ("loss", *recipe.generation.score_names()) if f"eval_{name}" in results]
    width = max(12, *(len(name) + 2 for name in names))
    for name in names:
        print(f"{name:<{width}}{results[f'eval_{name}']:.4f}")


if __name__ == "__main__":
    run_command(main)
