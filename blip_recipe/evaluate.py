"""Score a model on a split, or score a file of captions.

python -m blip_recipe.evaluate --model outputs/coco_lora --dataset_name jxie/flickr8k --eval_split test
python -m blip_recipe.evaluate --predictions captions.json --references captions_val2014.json --subset true
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.errors import RecipeError, run_command
from blip_recipe.metrics.scores import MAKERS, PICTURE_METRICS
from blip_recipe.recipe.arguments import EvaluateOptions, recorded_task
from blip_recipe.recipe.effects import RANKING_NEEDS, SCORE_NEEDS, Need, check_effects
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.vqa.answer_lists import ANSWER_LIST_FILE

if TYPE_CHECKING:
    from blip_recipe.card.report import ReportFacts
    from blip_recipe.metrics.scores import SetScorer
    from blip_recipe.recipe.recipe import Recipe

PROG = "python -m blip_recipe.evaluate"

RECORDED = (
    *("task", "prompt", "prompt_column", "normalize_captions", "max_words", "max_caption_length", "rerank_top_k"),
    *("label_smoothing_factor", "score_tokenizer", "rank_top_k", "rank_by"),
    *("generation_num_beams", "generation_max_length", "generation_min_length"),
    *("generation_repetition_penalty", "generation_no_repeat_ngram_size", "generation_length_penalty"),
    *("generation_early_stopping", "generation_length_penalty_counts_prompt"),
)
"""Keys of a model's `recipe.json` that its scores depend on."""


FILE_NEEDS = [
    Need(("references",), ("predictions",), lambda recipe: recipe.options.predictions is not None, "Set predictions")
]
"""Keys of this command without effect when a model is scored. The keys of training may stand."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Score a model on a split, or a file of captions."""
    recipe = read_recipe(
        EvaluateOptions,
        prog=prog,
        description="Score a model on a split of a data set, or a file of captions against their references.",
        recipe_needed=False,
        argv=argv,
        recorded=read_recorded,
    )
    if recipe.options.predictions:
        score_file(recipe)
    else:
        score_model(recipe)


def read_recorded(given: dict[str, str]) -> dict[str, Any]:
    """The keys of a model's `recipe.json` that apply unless others are given, so that scores are comparable.

    Raises:
        RecipeError: There is no such model, or its task is unknown.
    """
    if "model_name_or_path" not in given:
        return {}

    from blip_recipe.models.loading import find_repository_file, read_repository_json

    hub: dict[str, Any] = {"name": given["model_name_or_path"], "revision": given.get("model_revision")}
    found = read_repository_json(filename="recipe.json", **hub)
    recorded = {key: found[key] for key in RECORDED if key in found} | {"task": recorded_task(found)}
    if found.get("answer_list") and (answers := find_repository_file(filename=ANSWER_LIST_FILE, **hub)):
        recorded["answer_list"] = str(answers)
    return recorded


def score_file(recipe: Recipe[EvaluateOptions]) -> None:
    """Score the captions of `--predictions` against `--references`."""
    check_effects(recipe, SCORE_NEEDS)

    from blip_recipe.metrics import CaptionScorer
    from blip_recipe.metrics.intervals import interval_scores
    from blip_recipe.metrics.pairing import find_pictures, pair_files

    options, training = recipe.options, recipe.training
    paired = pair_files(
        Path(str(options.predictions)), Path(str(options.references or options.predictions)), subset=options.subset
    )
    predictions, references = paired.predictions, paired.references
    if options.subset:
        print(f"scored {len(references):,} of {paired.images:,} images with references")
    images = None
    if any(name in PICTURE_METRICS for name in training.metrics):
        files = f"{options.predictions} and {options.references or options.predictions}"
        images = find_pictures(paired.names, Path(recipe.data.image_root or "."), files)
    tokenizer: Any = getattr(training, "score_tokenizer", "ptb")
    with CaptionScorer(training.metrics, tokenizer=tokenizer, scorers=load_scorers(training)) as scorer:
        resamples, seed = training.bootstrap_resamples, training.seed
        scores = scorer.score(predictions, references, images=images, resamples=resamples, seed=seed)
    metrics = {f"eval_{name}": value for name, value in (scores.corpus | interval_scores(scores.intervals)).items()}
    records = scores.records(predictions, references)
    report(recipe, metrics, records)
    write_page_of_file(recipe, metrics, records, paired.names)


def load_scorers(training: Any) -> list[SetScorer]:
    """Load what the metrics need beside words; nothing for the metrics of words."""
    if not any(name in MAKERS for name in training.metrics):
        return []

    from blip_recipe.training.score_models import ScoreModels, build_scorers

    return build_scorers(training, ScoreModels.load(training, training.device))


def score_model(recipe: Recipe[EvaluateOptions]) -> None:
    """Generate with a model directory or Hub id on `--eval_split`, and score the result."""
    role = next((role for role in ("eval", "test") if recipe.data.has_split(role)), None)
    if recipe.data.dataset_name is None or role is None:
        raise RecipeError("Set dataset_name and eval_split to score a model, or --predictions to score a file.")
    check_effects(recipe, [*FILE_NEEDS, *RANKING_NEEDS, *SCORE_NEEDS])

    from blip_recipe.data.checks import SKIPPED_FILE, check_splits, write_skipped_rows
    from blip_recipe.data.load import load_role
    from blip_recipe.models.loading import load_finished
    from blip_recipe.recipe.logs import set_up_logs

    set_up_logs(recipe.training)
    model, data = recipe.model, recipe.data
    with recipe.training.main_process_first(desc="reading the data"):
        rows = load_role(data, role, recipe.task.load_split)
        recipe.task.prepare_scoring(data, recipe.training)
    checked = check_splits({"eval": rows}, data, recipe.task.validate_row)
    loaded, processor, _ = load_finished(
        model.model_name_or_path,
        recipe.trainer.model_class,
        revision=model.model_revision,
        quantization=model.quantization or "recorded",
        trust_remote_code=model.trust_remote_code,
    )
    trainer = recipe.trainer(loaded, recipe.training, eval_dataset=checked.rows["eval"], processing_class=processor)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        report(recipe, metrics, trainer.predictions)
        trainer.write_report(page_facts(recipe, metrics, model.model_name_or_path))
        write_skipped_rows(recipe.output_dir / SKIPPED_FILE, checked.skipped)


def report(recipe: Recipe[EvaluateOptions], results: dict[str, float], records: list[dict[str, Any]]) -> None:
    """Write `all_results.json` and `predictions.jsonl` to `output_dir`, and print the scores."""
    from blip_recipe.data.storage import PREDICTIONS_FILE, write_json, write_predictions
    from blip_recipe.metrics.intervals import ENDS, is_end

    recorded = results | recipe.training.score_settings()
    write_json(recipe.output_dir / "all_results.json", dict(sorted(recorded.items())))
    write_predictions(recipe.output_dir / PREDICTIONS_FILE, records)
    shown = ("loss", *recipe.training.scores())
    ends = {key for key in results if is_end(key, results)}
    names = [key.removeprefix("eval_") for name in shown for key in results if is_score(key, f"eval_{name}")]
    names = [name for name in names if f"eval_{name}" not in ends]
    width = max([12, *(len(name) + 2 for name in names)])
    for name in names:
        low, high = (results.get(f"eval_{name}_{end}") for end in ENDS)
        interval = "" if low is None else f"  ({low:.4f} to {high:.4f})"
        print(f"{name:<{width}}{results[f'eval_{name}']:.4f}{interval}")


def write_page_of_file(
    recipe: Recipe[EvaluateOptions], metrics: dict[str, float], records: list[dict[str, Any]], names: dict[Any, list[str]]
) -> None:
    """Write `report.html` of `--predictions`, with the pictures that are beside one of the files."""
    from blip_recipe.card.report import files_of, remove_report, write_report

    if not recipe.training.report:
        return remove_report(recipe.output_dir)
    predictions, references = recipe.options.predictions, recipe.options.references
    files = (predictions, references)
    folders = [Path(recipe.data.image_root or "."), Path(), *(Path(file).parent for file in files if file)]
    facts = page_facts(recipe, metrics, str(predictions))
    write_report(
        recipe.output_dir, records, recipe.trainer.task, facts, find_picture=files_of(names, dict.fromkeys(folders))
    )
    return None


def page_facts(recipe: Recipe[EvaluateOptions], metrics: dict[str, float], scored: str) -> ReportFacts:
    """What stands above the rows of `report.html`; `scored` is the model or the file."""
    from blip_recipe.card.facts import Source
    from blip_recipe.card.gathering import group_facts, score_facts
    from blip_recipe.card.report import ReportFacts

    data, words = recipe.data, recipe.trainer.task
    named = {"scored": Source(scored).facts().name}
    if data.dataset_name and not recipe.options.predictions:
        named |= {"data": Source(str(data.dataset_name)).facts().name}
    title = f"{words.title}: {named.get('data', named['scored'])}"
    return ReportFacts(title, list(named.items()), [*score_facts(metrics, "eval"), *group_facts(metrics, "eval")])


def is_score(key: str, score: str) -> bool:
    """Whether a key is that of a score, or of the same score of a group: `eval_cider`, `eval_cider_in_domain`."""
    return key == score or key.startswith(f"{score}_")


if __name__ == "__main__":
    run_command(main)
