"""A recipe: one flat file whose keys can be overridden on the command line.

Keys of `transformers.Seq2SeqTrainingArguments` keep their meaning; the rest are those of the classes of arguments of
the task (`arguments.py`). Nothing is imported at the top that imports torch, so that `--help` is fast.
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers.hf_argparser import HfArgumentParser

from blip_recipe.errors import RecipeError
from blip_recipe.recipe.arguments import TASKS, TaskArguments, names_of, owner_of
from blip_recipe.recipe.checks import check_values
from blip_recipe.recipe.file import HelpFormatter, RecipeParser, find_recipe, load_json, to_words, unknown_key
from blip_recipe.recipe.recipe import OF_ONE_RUN, Options, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from blip_recipe.recipe.arguments import TaskName

OF_TRAINING = ("cache_image_embeds", "image_cache", "fsdp", "fsdp_config")
"""Keys by which training reads pictures and is spread over processes, and an evaluation is not."""

HELP_EPILOG = """\
Every argument of transformers.Seq2SeqTrainingArguments works too, in the recipe and here; the usual ones:
  --output_dir --num_train_epochs --max_steps --per_device_train_batch_size --per_device_eval_batch_size
  --gradient_accumulation_steps --learning_rate --weight_decay --lr_scheduler_type --warmup_steps --optim
  --label_smoothing_factor --bf16 --gradient_checkpointing --eval_strategy --save_strategy --save_total_limit
  --load_best_model_at_end --metric_for_best_model --resume_from_checkpoint --logging_steps --report_to --seed
  --dataloader_num_workers --push_to_hub --hub_model_id --hub_private_repo --hub_strategy"""


def read_recipe(
    options: type[Options],
    *,
    prog: str,
    description: str,
    recipe_needed: bool,
    argv: list[str] | None = None,
    recorded: Callable[[dict[str, str]], dict[str, Any]] | None = None,
) -> Recipe[Options]:
    """Parse the command line: a recipe file, if there is one, and overrides.

    Args:
        options: The class of the command's own options.
        prog: The command, for `--help`.
        description: What it does, for `--help`.
        recipe_needed: Whether the first argument must be a recipe file.
        argv: The command line without the program; default: the process's own.
        recorded: Gives keys that hold where neither file nor command line say otherwise, such as those of a finished
            model; takes the `task`, `stage`, `model_name_or_path` and `model_revision` that were given.

    Raises:
        RecipeError: Something in it is unknown, of the wrong type or impossible.
    """
    words: list[str] = sys.argv[1:] if argv is None else argv
    if not words or "-h" in words or "--help" in words:
        _print_help(options, prog, description, recipe_needed, words)
        raise SystemExit(0 if words else 2)
    file, read = _read_file(words[0], recipe_needed)
    own_words: list[str] = words[1:] if file else words
    peeked = _peek(read, own_words)
    kept = recorded(peeked) if recorded else {}
    task, stage = _choose_task({**kept, **peeked})

    # With torch, as late as can be.
    from blip_recipe.recipe.training_arguments import TRAINING_ARGUMENTS

    keys = TASKS[task]
    groups: list[Any] = [keys.model, keys.data, TaskArguments, options, TRAINING_ARGUMENTS[task][stage]]
    parser = RecipeParser(groups, prog=prog, add_help=False, allow_abbrev=False)
    names: list[str] = names_of(*groups)
    lists: set[str] = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    content: dict[str, Any] = _without_foreign(
        read, names, f"task is {task!r}" if stage == "xe" else f"stage is {stage!r}"
    )
    given_words: list[str] = [*to_words(content, names, lists, words[0]), *own_words]
    kept_words: list[str] = to_words(
        {key: value for key, value in kept.items() if key in names}, names, lists, "recipe.json"
    )
    default_dir = f"outputs/{file.stem}" if file and recipe_needed else "outputs/evaluate"
    parsed = _parse(parser, [f"--output_dir={default_dir}", *kept_words, *given_words])
    model, data, chosen, command, training, unknown = parsed
    _refuse_unknown(unknown, parser, f"task is {task!r}" if chosen.stage == "xe" else f"stage is {chosen.stage!r}")
    given = _given(parser, given_words)
    # Trainer's own push swallows its failures and uploads pickles: this package pushes, once, at the end.
    push_to_hub, training.push_to_hub = training.push_to_hub, False

    # Trainers bring `datasets`, a second that a wrong key need not wait for.
    from blip_recipe.recipe.tasks import find_task

    recipe = Recipe(model, data, training, command, find_task(task), stage, given=given, push_to_hub=push_to_hub)
    check_values(recipe)
    return recipe


def _read_file(word: str, is_needed: bool) -> tuple[Path | None, dict[str, Any]]:
    """The recipe file that the command line begins with, if it does, and its keys.

    Raises:
        RecipeError: There is none, though one is needed, or it cannot be read.
    """
    if word.startswith("-"):
        if is_needed:
            raise RecipeError(
                f"The first argument is {word!r}: expected a recipe file, such as recipes/shapes_tiny.json."
            )
        return None, {}
    file = find_recipe(word)
    content = load_json(file)
    if not is_needed:
        # Scores of an evaluation do not belong into the run that the recipe describes.
        content = {key: value for key, value in content.items() if key not in ("output_dir", *OF_TRAINING, *OF_ONE_RUN)}
    return file, content


def _parse(parser: HfArgumentParser, words: list[str]) -> tuple[Any, ...]:
    """An object of each class of arguments, and the words that are of none.

    Raises:
        RecipeError: A value is wrong.
    """
    try:
        return parser.parse_args_into_dataclasses(words, return_remaining_strings=True, look_for_args_file=False)
    except (ValueError, ImportError) as error:
        raise RecipeError(str(error)) from error


def _given(parser: HfArgumentParser, words: list[str]) -> dict[str, Any]:
    """The keys that `words` give, without defaults; `parser` has none afterwards.

    Raises:
        RecipeError: One is a token.
    """
    for action in parser._actions:
        action.default = SUPPRESS
    given = vars(parser.parse_known_args(words)[0])
    if token := next((key for key in given if key.endswith("_token") and given[key]), None):
        raise RecipeError(
            f"{token} is given, but a token must not stand in a recipe: set HF_TOKEN or run `hf auth login`."
        )
    return given


def _peek(content: dict[str, Any], words: Sequence[str]) -> dict[str, str]:
    """What is given of the keys that decide which other keys there are."""
    parser = RecipeParser([], add_help=False, allow_abbrev=False)
    for names in (("--task",), ("--stage",), ("--model_name_or_path", "--model"), ("--model_revision",)):
        parser.add_argument(*names, dest=names[0][2:], default=SUPPRESS)
    said = vars(parser.parse_known_args(list(words))[0])
    return {key: str(value) for key, value in content.items() if key in TASK_KEYS and value is not None} | said


TASK_KEYS = ("task", "stage", "model_name_or_path", "model_revision")


def _choose_task(peeked: dict[str, Any]) -> tuple[TaskName, Any]:
    """The task and the stage.

    Raises:
        RecipeError: There is no such task, or it has no such stage.
    """
    task, stage = peeked.get("task", "captioning"), peeked.get("stage", "xe")
    if task not in TASKS:
        raise RecipeError(f"task is {task!r}: expected one of {', '.join(TASKS)}.")
    stages = TASKS[cast("TaskName", task)].stages
    if stage not in stages:
        if stage in TASKS["captioning"].stages:
            raise RecipeError(
                f"stage is {stage!r}, but task is {task!r}: it belongs to 'captioning'. Leave one of them out."
            )
        raise RecipeError(f"stage is {stage!r}: expected one of {', '.join(stages)}.")
    return cast("TaskName", task), stage


def _is_off(value: Any) -> bool:
    """Whether a key is given to say that it is off."""
    return value in (None, False, "", "false", "False", "xe")


def _without_foreign(content: dict[str, Any], names: Sequence[str], chosen: str) -> dict[str, Any]:
    """A recipe without keys of other tasks that are off.

    Raises:
        RecipeError: A key of another task is on.
    """
    foreign = {key: owner for key in content if key not in names and (owner := owner_of(key))}
    for key, owner in foreign.items():
        if not _is_off(content[key]):
            raise _foreign_key(key, owner, chosen)
    return {key: value for key, value in content.items() if key not in foreign}


def _refuse_unknown(unknown: Sequence[str], parser: HfArgumentParser, chosen: str) -> None:
    """Refuse words of the command line that are no key; keys of other tasks may be off.

    Raises:
        RecipeError: There is one.
    """
    words = list(unknown)
    while words:
        key, has_value, value = words.pop(0).lstrip("-").partition("=")
        if not has_value and words and not words[0].startswith("--"):
            value = words.pop(0)
        key = key.replace("-", "_")
        if (owner := owner_of(key)) is None:
            aliases = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
            raise unknown_key(key, aliases, "the command line")
        if not _is_off(value):
            raise _foreign_key(key, owner, chosen)


def _foreign_key(key: str, owner: str, chosen: str) -> RecipeError:
    return RecipeError(f"{key} is given, but {chosen}: it belongs to {owner}. Leave one of them out.")


def _print_help(options: Any, prog: str, description: str, recipe_needed: bool, words: Sequence[str]) -> None:
    """The keys of the task that is asked for."""
    task, stage = _choose_task(_peek({}, [word for word in words if word not in ("-h", "--help")]))
    keys = TASKS[task]
    groups: list[Any] = [TaskArguments, keys.model, keys.data, keys.stages[stage], options]
    HfArgumentParser(
        groups,
        prog=prog,
        usage=f"{prog} {'RECIPE.json' if recipe_needed else '[RECIPE.json]'} [--key value ...]",
        description=description,
        epilog=HELP_EPILOG,
        formatter_class=HelpFormatter,
    ).print_help()
