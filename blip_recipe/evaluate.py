"""Score a model on a split, or score a file of captions.

python -m blip_recipe.evaluate --model outputs/coco_lora --dataset_name jxie/flickr8k --eval_split test
python -m blip_recipe.evaluate --predictions captions.json --references captions_val2014.json --subset true
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.arguments import EvaluateOptions, recorded_task
from blip_recipe.recipe.effects import RANKING_NEEDS, SCORE_NEEDS, Need, check_effects
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.recipe.scored_file import page_facts, read_file_arguments, score_file, write_scores
from blip_recipe.vqa.answer_lists import ANSWER_LIST_FILE

if TYPE_CHECKING:
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


def generation_need(recipe: Recipe[EvaluateOptions]) -> Need:
    """The decoding keys of the command line, which have no effect where the answers of a list are ranked.

    Those of a file may stand: they are the decoding of the published model.
    """
    keys = tuple(key for key in recipe.overrides if key.startswith("generation_"))
    ranks = getattr(recipe.training, "answer_list", None) is not None
    return Need(keys, ("answer_list",), lambda _: not ranks, "Set answer_list to null")


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Score a model on a split, or a file of captions."""
    if files := read_file_arguments(sys.argv[1:] if argv is None else argv):
        options, arguments = files
        score_file(options, arguments, arguments.image_root)
        return
    recipe = read_recipe(
        EvaluateOptions,
        prog=prog,
        description="Score a model on a split of a data set, or a file of captions against their references.",
        recipe_needed=False,
        argv=argv,
        recorded=read_recorded,
    )
    if recipe.options.predictions:
        check_effects(recipe, SCORE_NEEDS)
        score_file(recipe.options, recipe.training, recipe.data.image_root)
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


def score_model(recipe: Recipe[EvaluateOptions]) -> None:
    """Generate with a model directory or Hub id on `--eval_split`, and score the result."""
    role = next((role for role in ("eval", "test") if recipe.data.has_split(role)), None)
    if recipe.data.dataset_name is None or role is None:
        raise RecipeError("Set dataset_name and eval_split to score a model, or --predictions to score a file.")
    check_effects(recipe, [*FILE_NEEDS, *RANKING_NEEDS, *SCORE_NEEDS, generation_need(recipe)])

    from blip_recipe.data.checks import SKIPPED_FILE, check_splits, write_skipped_rows
    from blip_recipe.data.load import load_role
    from blip_recipe.models.loading import load_finished
    from blip_recipe.recipe.logs import set_up_logs

    set_up_logs(recipe.training)
    model, data = recipe.model, recipe.data
    with recipe.training.main_process_first(desc="reading the data"):
        rows = load_role(data, role, recipe.task.load_split, recipe.task.open_stream)
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
        write_scores(recipe.training, metrics, trainer.predictions)
        name = model.model_name_or_path
        trainer.write_report(page_facts(recipe.trainer.task, metrics, name, str(data.dataset_name)))
        write_skipped_rows(recipe.output_dir / SKIPPED_FILE, checked.skipped)


if __name__ == "__main__":
    run_command(main)
