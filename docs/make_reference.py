"""Write the pages of `docs/recipes/` that list the keys of recipes, from the classes of arguments.

python -m docs.make_reference
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from pathlib import Path
from typing import Any

from blip_recipe.capfilt.arguments import CapFiltArguments
from blip_recipe.captioning.arguments import CaptionArguments, ScstArguments
from blip_recipe.data.arguments import CaptionDataArguments, DataArguments
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.pretraining.arguments import PretrainArguments
from blip_recipe.recipe.arguments import TASKS, EvaluateOptions, FinetuneOptions, TaskArguments, names_of
from blip_recipe.recipe.training_arguments import TRAINING_ARGUMENTS
from blip_recipe.retrieval.arguments import RetrievalArguments
from blip_recipe.training.arguments import BlipArguments, CaptionTextArguments, GenerationArguments
from blip_recipe.training.training_arguments import BlipTrainingArguments
from blip_recipe.vqa.arguments import VqaArguments, VqaDataArguments

FOLDER = Path(__file__).parent / "recipes"
NOTE = "<!-- Written by docs/make_reference.py from the classes of arguments: change those. -->"
TRAINER_DOCS = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.Seq2SeqTrainingArguments"

TRAINER_KEYS: dict[str, dict[str, str | None]] = {
    "Length and batches": {
        "num_train_epochs": "Number of passes over the training images.",
        "max_steps": "Number of steps; over 0 it replaces `num_train_epochs`.",
        "per_device_train_batch_size": "Images (VQA: questions) per batch of each process.",
        "gradient_accumulation_steps": "Batches that make up one optimizer step.",
        "per_device_eval_batch_size": "Images (VQA: questions) scored at once, for each process.",
        "train_sampling_strategy": "`group_by_length` puts images with similar numbers of words into one batch.",
        "dataloader_num_workers": None,
        "dataloader_drop_last": "Drop the last batch of a training epoch if it is smaller than the others.",
    },
    "Optimizer": {
        "learning_rate": None,
        "lr_scheduler_type": None,
        "warmup_steps": "Steps over which the learning rate rises from 0; below 1, a share of all steps.",
        "weight_decay": None,
        "max_grad_norm": "Largest norm of the gradient; 0: no clipping.",
        "label_smoothing_factor": None,
        "optim": "Optimizer; `adamw_8bit` keeps its moments in 8 bits.",
        "seed": "Seed of every random number.",
        "full_determinism": "Use deterministic GPU kernels only; slower.",
    },
    "Memory and speed": {
        "bf16": None,
        "fp16": "Compute in float16.",
        "tf32": "Use TF32 matrix products on the GPU.",
        "gradient_checkpointing": "Compute activations again in the backward pass: less memory, about a third more "
        "work. Default: on if a step would not fit on the GPU otherwise.",
        "torch_compile": "Compile the model; takes minutes at the start.",
        "fsdp": "`true`: shard weights over processes with FSDP2.",
    },
    "Evaluation and checkpoints": {
        "eval_strategy": "When `eval_split` is scored: `no`, `steps` or `epoch`.",
        "eval_steps": "Steps between evaluations, with `steps`.",
        "save_strategy": None,
        "save_steps": "Steps between checkpoints, with `steps`.",
        "save_total_limit": None,
        "load_best_model_at_end": "End with the best checkpoint instead of the last.",
        "metric_for_best_model": "The score that says which checkpoint is best, or a sum: `bleu_4+cider`.",
        "resume_from_checkpoint": "A checkpoint to resume from; default: the newest intact one in `output_dir`.",
        "logging_steps": None,
        "report_to": "Trackers that get logs, scores and [tables of texts](../trackers.md), such as `tensorboard`.",
    },
    "Output and the Hub": {
        "output_dir": "Where model, card, scores and checkpoints go; default: `outputs/` and the recipe's name.",
        "push_to_hub": "Publish the finished model.",
        "hub_model_id": "Repository, `NAME` or `ORG/NAME`; default: the name of `output_dir`.",
        "hub_private_repo": "Make the repository private, if the run creates it.",
        "hub_strategy": "If set in the recipe, and not to `end`: push each checkpoint to the branch `checkpoints` too.",
    },
}
"""Keys of `Seq2SeqTrainingArguments` that recipes often use, with their meaning; None: our class says it."""

Row = tuple[str, str, str, str]


def main() -> None:
    """Write the pages."""
    for name, text in reference_pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def reference_pages() -> dict[str, str]:
    """The text of each page by file name."""
    own = DataArguments
    return {
        "model.md": page(
            "Model keys",
            "Which BLIP is trained, and how much of it. [Adapters and quantisation](../adapters.md) explains the LoRA "
            "keys.",
            {"": rows(ModelArguments, {task: keys.model for task, keys in TASKS.items()})},
        ),
        "data.md": page(
            "Data keys",
            "Where pictures and texts come from. [Data](../data.md) explains the formats.",
            {
                "All tasks": rows(own),
                "Captioning, retrieval and pre-training": rows(CaptionDataArguments, without=own),
                "Visual question answering": rows(VqaDataArguments, without=own),
            },
        ),
        "tasks.md": page(
            "Task keys",
            "What is learnt, and how texts are written and scored.",
            {
                "Choice of the task": rows(TaskArguments),
                "All tasks": rows(BlipArguments, stages()),
                "Generation (captioning, pre-training and VQA)": rows(
                    GenerationArguments, {"captioning": CaptionArguments, "vqa": VqaArguments}, without=BlipArguments
                ),
                "Captioning": rows(CaptionArguments, without=GenerationArguments),
                'Self-critical training (`"stage": "scst"`)': rows(ScstArguments, without=CaptionArguments),
                'Visual question answering (`"task": "vqa"`)': rows(VqaArguments, without=GenerationArguments),
                'Retrieval (`"task": "retrieval"`)': rows(RetrievalArguments, without=BlipArguments),
                'Pre-training (`"task": "pretrain"`), with the keys of captioning for scores and lengths': rows(
                    PretrainArguments, without=CaptionTextArguments
                ),
            },
        ),
        "trainer.md": page(
            "Trainer keys",
            "Keys of transformers' `Seq2SeqTrainingArguments` that recipes often use. Every other key of "
            f"[that class]({TRAINER_DOCS}) works too, except the three that are fixed: `remove_unused_columns`, "
            "`predict_with_generate` and `dataloader_persistent_workers`.",
            {group: trainer_rows(keys) for group, keys in TRAINER_KEYS.items()}
            | {"Options of `finetune`": rows(FinetuneOptions), "Options of `evaluate`": rows(EvaluateOptions)},
        ),
        "capfilt.md": page(
            "CapFilt keys",
            "Keys of a recipe for the command `capfilt`. [CapFilt](../capfilt.md) explains them.",
            {"": rows(CapFiltArguments)},
        ),
    }


def stages() -> dict[str, Any]:
    """The arguments of each task's trainer, by cross entropy."""
    return {task: keys.stages["xe"] for task, keys in TASKS.items()}


def page(title: str, introduction: str, groups: dict[str, list[Row]]) -> str:
    """A page with a table for each group of keys."""
    lines = [NOTE, "", f"# {title}", "", introduction]
    for heading, keys in groups.items():
        lines += ["", f"## {heading}"] if heading else []
        lines += ["", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{name}` | {kind} | {default} | {meaning} |" for name, kind, default, meaning in keys]
    return "\n".join(lines) + "\n"


def rows(group: Any, tasks: dict[str, Any] | None = None, *, without: Any = None) -> list[Row]:
    """The keys of a class of arguments.

    Args:
        group: The class.
        tasks: Classes that may have other defaults, by task.
        without: A class whose keys are left out.
    """
    left_out = set() if without is None else set(names_of(without))
    return [
        row(group, each, default_in_tasks(each.name, tasks or {"": group}), each.metadata["help"])
        for each in dataclasses.fields(group)
        if each.init and each.name not in left_out
    ]


def trainer_rows(keys: dict[str, str | None]) -> list[Row]:
    """Keys of the trainer, with the defaults of each task."""
    fields = {each.name: each for each in dataclasses.fields(BlipTrainingArguments)}
    tasks: dict[str, Any] = {task: arguments["xe"] for task, arguments in TRAINING_ARGUMENTS.items()}
    return [
        row(BlipTrainingArguments, fields[name], default_in_tasks(name, tasks), text or fields[name].metadata["help"])
        for name, text in keys.items()
    ]


def row(group: Any, each: dataclasses.Field[Any], default: str, meaning: str) -> Row:
    """One line of a table."""
    hints = typing.get_type_hints(group)
    return each.name, describe_type(hints[each.name]), default, meaning.replace("|", "\\|")


def default_in_tasks(name: str, tasks: dict[str, Any]) -> str:
    """The default of a key, with the tasks where they differ."""
    found = {
        task: describe_default(each)
        for task, group in tasks.items()
        for each in dataclasses.fields(group)
        if each.name == name
    }
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{task}: {value or 'follows the data'}" for task, value in found.items())


def describe_default(each: dataclasses.Field[Any]) -> str:
    """A default as a recipe writes it; none for what is left open."""
    value = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
    value = value.value if isinstance(value, enum.Enum) else value
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return "`" + " ".join(map(str, value)) + "`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def describe_type(hint: Any) -> str:
    """A type in the words of a recipe."""
    origin, inner = typing.get_origin(hint), [each for each in typing.get_args(hint) if each is not type(None)]
    if origin is typing.Literal:
        return " or ".join(f"`{str(each).lower() if isinstance(each, bool) else each}`" for each in inner)
    if origin in (typing.Union, types.UnionType):
        kinds = [each for each in inner if typing.get_origin(each) is dict] or inner
        return describe_type(kinds[-1] if str in kinds else kinds[0])
    if origin is dict:
        return "object"
    if origin is list:
        return f"list of {describe_type(inner[0])}"
    return {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}.get(hint, "text")


if __name__ == "__main__":
    main()
