"""Parse a recipe file and the command line that overrides it."""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers.hf_argparser import HfArgumentParser

from blip_recipe.errors import RecipeError
from blip_recipe.recipe.arguments import TASKS, TaskArguments, names_of, owner_of
from blip_recipe.recipe.checks import check_values
from blip_recipe.recipe.file import find_recipe, load_recipe
from blip_recipe.recipe.parser import (
    HelpFormatter,
    RecipeParser,
    is_off,
    list_keys,
    option_names,
    to_arguments,
    unknown_key,
)
from blip_recipe.recipe.recipe import ONE_START_KEYS, Options, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from blip_recipe.recipe.arguments import TaskName

# torch is imported late, so that `--help` is fast.

TRAINING_ONLY_KEYS = ("cache_image_embeds", "image_cache", "fsdp", "fsdp_config")
"""Keys of a recipe that an evaluation ignores: how training reads pictures and is spread over processes."""

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
        prog: Name of the command in `--help`.
        description: What the command does, for `--help`.
        recipe_needed: Whether the first argument must be a recipe file.
        argv: The arguments of the command; default: those of the process.
        recorded: Gives values for keys that neither the file nor the command line sets, such as those of a finished
            model. It takes the `task`, `stage`, `model_name_or_path` and `model_revision` that are set.

    Raises:
        RecipeError: A key is unknown, or a value has the wrong type or is impossible.
    """
    arguments: list[str] = sys.argv[1:] if argv is None else argv
    if not arguments or "-h" in arguments or "--help" in arguments:
        _print_help(options, prog, description, recipe_needed, arguments)
        raise SystemExit(0 if arguments else 2)
    file, content = _read_file(arguments[0], recipe_needed)
    overrides: list[str] = arguments[1:] if file else arguments
    task_keys = _find_task_keys(content, overrides)
    defaults = recorded(task_keys) if recorded else {}
    task, stage = _choose_task({**defaults, **task_keys})

    from blip_recipe.recipe.training_arguments import TRAINING_ARGUMENTS

    keys = TASKS[task]
    groups: list[Any] = [keys.model, keys.data, TaskArguments, options, TRAINING_ARGUMENTS[task][stage]]
    parser = RecipeParser(groups, prog=prog, add_help=False, allow_abbrev=False)
    names: list[str] = names_of(*groups)
    lists: set[str] = list_keys(parser)
    chosen = f"task is {task!r}" if stage == "xe" else f"stage is {stage!r}"
    own: dict[str, Any] = _drop_other_tasks(content, names, chosen)
    given_arguments: list[str] = [*to_arguments(own, names, lists, arguments[0]), *overrides]
    known_defaults: dict[str, Any] = {
        key: value for key, value in defaults.items() if key in names and value is not None
    }
    default_dir = f"outputs/{file.stem}" if file and recipe_needed else "outputs/evaluate"
    model, data, _, command, training, unknown = _parse(
        parser,
        [f"--output_dir={default_dir}", *to_arguments(known_defaults, names, lists, "recipe.json"), *given_arguments],
    )
    _refuse_unknown(unknown, parser, chosen)
    given, chosen_here = _given_keys(parser, given_arguments), _given_keys(parser, overrides).keys()
    # Trainer's own push ignores its failures and uploads pickles: this package pushes, once, at the end.
    push_to_hub, training.push_to_hub = training.push_to_hub, False

    # Trainers import `datasets`, which takes a second that the message about a wrong key need not wait for.
    from blip_recipe.recipe.tasks import find_task

    recipe = Recipe(model, data, training, command, find_task(task), stage, given, push_to_hub, chosen_here)
    check_values(recipe)
    return recipe


def _read_file(argument: str, is_needed: bool) -> tuple[Path | None, dict[str, Any]]:
    """The recipe file that the first argument names, if it names one, and the file's keys.

    Raises:
        RecipeError: The file is missing though one is needed, or cannot be read.
    """
    if argument.startswith("-"):
        if is_needed:
            raise RecipeError(
                f"The first argument is {argument!r}: expected a recipe file, such as recipes/shapes_tiny.json."
            )
        return None, {}
    file = find_recipe(argument)
    content = load_recipe(file)
    if not is_needed:
        # Scores of an evaluation do not belong in the output directory of the run that the recipe describes.
        ignored = ("output_dir", *TRAINING_ONLY_KEYS, *ONE_START_KEYS)
        content = {key: value for key, value in content.items() if key not in ignored}
    return file, content


def _parse(parser: HfArgumentParser, arguments: list[str]) -> tuple[Any, ...]:
    """An object of each class of arguments, and the arguments that belong to none.

    Raises:
        RecipeError: A value is wrong.
    """
    try:
        return parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    except (ValueError, ImportError) as error:
        raise RecipeError(str(error)) from error


def _given_keys(parser: HfArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """The keys and values that `arguments` set, without defaults; removes the defaults of `parser`.

    Raises:
        RecipeError: A token is among them.
    """
    for action in parser._actions:
        action.default = SUPPRESS
    given = vars(parser.parse_known_args(arguments)[0])
    if token := next((key for key in given if key.endswith("_token") and given[key]), None):
        raise RecipeError(
            f"{token} is given, but a token must not stand in a recipe: set HF_TOKEN or run `hf auth login`."
        )
    return given


def _find_task_keys(content: dict[str, Any], arguments: Sequence[str]) -> dict[str, str]:
    """The keys that must be known before all others can be parsed; the command line overrides the file."""
    parser = RecipeParser([], add_help=False, allow_abbrev=False)
    for names in (("--task",), ("--stage",), ("--model_name_or_path", "--model"), ("--model_revision",)):
        parser.add_argument(*names, dest=names[0][2:], default=SUPPRESS)
    parser.unset_values = {"model_revision": None}
    overrides = vars(parser.parse_known_args(list(arguments))[0])
    given = {key: content[key] for key in TASK_KEYS if key in content} | overrides
    return {key: str(value) for key, value in given.items() if value is not None}


TASK_KEYS = ("task", "stage", "model_name_or_path", "model_revision")


def _choose_task(task_keys: dict[str, Any]) -> tuple[TaskName, Any]:
    """The task and the stage.

    Raises:
        RecipeError: There is no such task, or the task has no such stage.
    """
    task, stage = task_keys.get("task", "captioning"), task_keys.get("stage", "xe")
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


def _drop_other_tasks(content: dict[str, Any], names: Sequence[str], chosen: str) -> dict[str, Any]:
    """A recipe without the keys of other tasks, which may be there if they are off.

    Raises:
        RecipeError: A key of another task is on.
    """
    other = {key: owner for key in content if key not in names and (owner := owner_of(key))}
    for key, owner in other.items():
        if not is_off(content[key]):
            raise _foreign_key(key, owner, chosen)
    return {key: value for key, value in content.items() if key not in other}


def _refuse_unknown(unknown: Sequence[str], parser: HfArgumentParser, chosen: str) -> None:
    """Refuse arguments that are not keys; keys of other tasks may be there if they are off.

    Raises:
        RecipeError: There is such an argument.
    """
    arguments = list(unknown)
    while arguments:
        key, has_value, value = arguments.pop(0).lstrip("-").partition("=")
        if not has_value and arguments and not arguments[0].startswith("--"):
            value = arguments.pop(0)
        key = key.replace("-", "_")
        if (owner := owner_of(key)) is None:
            raise unknown_key(key, option_names(parser), "the command line")
        if not is_off(value):
            raise _foreign_key(key, owner, chosen)


def _foreign_key(key: str, owner: str, chosen: str) -> RecipeError:
    return RecipeError(f"{key} is given, but {chosen}: it belongs to {owner}. Leave one of them out.")


def _print_help(options: Any, prog: str, description: str, recipe_needed: bool, arguments: Sequence[str]) -> None:
    """Print the keys of the task that the command line names."""
    task, stage = _choose_task(_find_task_keys({}, [each for each in arguments if each not in ("-h", "--help")]))
    keys = TASKS[task]
    groups: list[Any] = [TaskArguments, keys.model, keys.data, keys.stages[stage], options]
    HfArgumentParser(
        groups,
        prog=prog,
        usage=f"{prog} {'RECIPE' if recipe_needed else '[RECIPE]'} [--key value ...]",
        description=description,
        epilog=HELP_EPILOG,
        formatter_class=HelpFormatter,
    ).print_help()
