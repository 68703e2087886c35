"""A recipe: one flat JSON file whose keys can be overridden on the command line.

Keys of `transformers.Seq2SeqTrainingArguments` keep their meaning; the rest are the fields of the dataclasses
below. Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from transformers.hf_argparser import HfArgumentParser

from blip_recipe.errors import RecipeError
from blip_recipe.recipe.checks import check_metrics, check_values
from blip_recipe.recipe.file import HelpFormatter, RecipeParser, find_recipe, load_json, to_words, unknown_key
from blip_recipe.recipe.task_keys import SCORE_NAMES, TASKS, TaskName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blip_recipe.training.arguments import CaptionTrainingArguments

Quantization = Literal["8bit", "4bit"]

SHAPES = "shapes"
"""`dataset_name` of the embedded data set."""

TINY_MODEL = "tiny"
"""`model_name_or_path` of the embedded model: a tiny BLIP with new weights and a vocabulary made from the captions."""


@dataclass
class ModelArguments:
    """Which BLIP is fine-tuned, and how much of it."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        default="Salesforce/blip-image-captioning-base",
        metadata={
            "aliases": ["--model"],
            "help": f"Hub id or directory of a BLIP captioner or of its adapter; '{TINY_MODEL}' is the embedded model.",
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Let code from the Hub run."})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Side of the square picture in pixels; position embeddings are interpolated to it."},
    )
    freeze_vision: bool = field(default=False, metadata={"help": "Leave the image encoder as it is."})
    attention_implementation: Literal["eager", "sdpa"] = field(
        default="sdpa", metadata={"help": "How attention is computed; the results agree up to rounding."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the LoRA update (divided by the rank)."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the LoRA matrices."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the adapted layers; default: every attention and feed-forward layer of the text."},
    )
    use_dora: bool = field(default=False, metadata={"help": "Weight-decomposed LoRA (arXiv 2402.09353)."})
    use_rslora: bool = field(default=False, metadata={"help": "Rank-stabilised scaling (arXiv 2312.03732)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the frozen base in 8 bits (with use_peft)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the frozen base in 4 bits (with use_peft)."})
    merge_adapter: bool = field(default=False, metadata={"help": "Save a plain model with the adapter folded in."})

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise RecipeError("load_in_8bit and load_in_4bit are both true: choose one.")
        for key in ("load_in_8bit", "load_in_4bit"):
            if getattr(self, key) and self.model_name_or_path == TINY_MODEL:
                raise RecipeError(f"{key} needs a trained model to quantise, but model_name_or_path is '{TINY_MODEL}'.")
        if self.use_peft and self.model_name_or_path == TINY_MODEL:
            raise RecipeError(
                f"use_peft needs a trained model to adapt, but model_name_or_path is {TINY_MODEL!r}, which is new each "
                "time: train it first, as recipes/shapes_lora.json expects."
            )
        if self.merge_adapter and not self.use_peft:
            raise RecipeError("merge_adapter is true, but use_peft is false: there will be no adapter to merge.")

    @property
    def quantization(self) -> Quantization | None:
        """The precision that the frozen base is loaded in."""
        return "4bit" if self.load_in_4bit else "8bit" if self.load_in_8bit else None


@dataclass
class DataArguments:
    """Where pictures and captions come from, and what of them a step sees."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub data set id, directory (imagefolder, parquet, webdataset) or captions file (COCO or Karpathy "
            "JSON); 'shapes' is the embedded generator of drawn scenes."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the data set; for 'shapes' the caption style."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on; a sum such as 'train+restval'."})
    eval_split: str | None = field(default=None, metadata={"help": "Split scored while training."})
    test_split: str | None = field(default=None, metadata={"help": "Split scored once, before and after training."})
    image_column: str | None = field(default=None, metadata={"help": "Column of pictures, paths or URLs."})
    caption_column: list[str] | None = field(default=None, metadata={"help": "Column or columns of captions."})
    question_column: str | None = field(default=None, metadata={"help": "vqa: column of questions."})
    answer_column: str | None = field(
        default=None, metadata={"help": "vqa: column of answers, one or those of several annotators."}
    )
    group_questions: bool = field(
        default=False,
        metadata={
            "help": "vqa: bring the questions about an image to a step together, so that it is read and encoded once."
        },
    )
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column that names the image; rows that share it are one image."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Directory that relative image paths start at."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read training rows from the Hub's shards, or a directory's, while training; other splits, and "
            "max_train_samples, fetch the rows that are used."
        },
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Images that each worker of a stream holds and draws from."}
    )
    on_bad_image: Literal["fail", "skip"] = field(
        default="fail", metadata={"help": "Stop before training, or go on without the pictures that cannot be read."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first N images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Score the first N images only."})
    prompt: str = field(default="", metadata={"help": "Words every caption starts with, e.g. 'a picture of '."})
    normalize_captions: bool = field(
        default=True, metadata={"help": "Clean training captions as BLIP's authors do (case, punctuation, 30 words)."}
    )
    max_caption_length: int = field(default=40, metadata={"help": "Longest caption in tokens, prompt included."})
    captions_per_image: int | None = field(
        default=None,
        metadata={"help": "Captions an image brings to a step: all (default), or N drawn anew each epoch."},
    )
    augmentation: Literal["blip", "none"] = field(
        default="blip", metadata={"help": "Random crop, flip and RandAugment as BLIP's authors do, or nothing."}
    )
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Train on large and remote pictures made small once, kept in this directory; 'true': in Hugging "
            "Face's cache."
        },
    )
    cache_image_embeds: bool = field(
        default=False,
        metadata={
            "help": "Encode each picture once and keep the result on disk (0.9 MB at base size in bf16), for a frozen "
            "image encoder without augmentation."
        },
    )

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples", "captions_per_image", "shuffle_buffer_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}: expected at least 1, or nothing for all.")
        if self.max_caption_length < 3:
            raise RecipeError(f"max_caption_length is {self.max_caption_length}: expected at least 3 tokens.")
        if self.image_cache is not None and self.image_cache.lower() == "false":
            self.image_cache = None
        if self.cache_image_embeds and self.image_cache is not None:
            raise RecipeError("cache_image_embeds and image_cache are both given: kept embeddings need no pictures.")
        if self.cache_image_embeds and self.augmentation != "none":
            raise RecipeError(
                f"cache_image_embeds is true, but augmentation {self.augmentation!r} changes pictures: expected 'none'."
            )

    @property
    def is_streamed(self) -> bool:
        """Whether training rows are read while training: those of `datasets`, unless a number of them is asked for."""
        is_table = self.dataset_name != SHAPES and not Path(str(self.dataset_name)).expanduser().is_file()
        return self.streaming and self.max_train_samples is None and is_table


@dataclass
class GenerationArguments:
    """How captions are generated and scored. Lengths count the prompt, as in BLIP's own configuration."""

    _argument_group_name = "generation"

    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "cider"],
        metadata={
            "help": "Scores: "
            + "; ".join(f"{' '.join(task.metrics)} ({name})" for name, task in TASKS.items())
            + "; default: bleu cider, or the task's first."
        },
    )
    eval_metrics: list[str] | None = field(
        default=None, metadata={"help": "Scores while training; default: `metrics` without SPICE, which takes minutes."}
    )
    generation_num_beams: int = field(default=3, metadata={"help": "Beams; 1 is greedy search."})
    generation_max_length: int = field(default=20, metadata={"help": "Longest caption in tokens, prompt included."})
    generation_min_length: int = field(default=5, metadata={"help": "Shortest caption in tokens, prompt included."})

    def __post_init__(self) -> None:
        known = list(chain.from_iterable(task.metrics for task in TASKS.values()))
        if unknown := [name for name in self.metrics if name not in known]:
            raise RecipeError(f"metrics names {unknown[0]!r}, which does not exist; known are {', '.join(known)}.")
        if extra := [name for name in self.metrics_while_training() if name not in self.metrics]:
            raise RecipeError(f"eval_metrics names {extra[0]!r}, which metrics does not: {', '.join(self.metrics)}.")
        if self.generation_num_beams < 1:
            raise RecipeError(f"generation_num_beams is {self.generation_num_beams}: expected at least 1.")

    def metrics_while_training(self) -> list[str]:
        """The metrics of evaluations between training steps."""
        return [name for name in self.metrics if name != "spice"] if self.eval_metrics is None else self.eval_metrics

    def score_names(self, metrics: Sequence[str] | None = None) -> list[str]:
        """The scores that `metrics` (default: all of the recipe's) bring, as they are named in results."""
        asked = self.metrics if metrics is None else metrics
        return [name for metric in asked for name in SCORE_NAMES.get(metric, (metric,))]

    def generate_kwargs(self) -> dict[str, Any]:
        """What `generate` is called with: beam search without sampling."""
        return {
            "num_beams": self.generation_num_beams,
            "max_length": self.generation_max_length,
            "min_length": self.generation_min_length,
            "do_sample": False,
        }


@dataclass
class ObjectiveArguments:
    """What is optimised: the likelihood of the captions, or, in a second stage, the scores of the model's own."""

    _argument_group_name = "objective"

    task: TaskName = field(
        default="captioning",
        metadata={
            "help": "What BLIP learns: to write captions, to answer questions (vqa), or to find pictures of texts and "
            "texts of pictures (retrieval)."
        },
    )
    stage: Literal["xe", "scst"] = field(
        default="xe",
        metadata={"help": "Cross entropy, or self-critical training (arXiv 1612.00563) of a model trained with it."},
    )
    num_generations: int = field(default=5, metadata={"help": "scst: captions sampled of an image."})
    scst_baseline: Literal["leave_one_out", "greedy"] = field(
        default="leave_one_out",
        metadata={"help": "scst: a sample is compared with the mean of the image's others, or its greedy caption."},
    )
    cider_reward_weight: float = field(default=1.0, metadata={"help": "scst: worth of a CIDEr-D of 1."})
    bleu_reward_weight: float = field(default=0.0, metadata={"help": "scst: worth of a BLEU-4 of 1."})
    kl_coef: float = field(
        default=0.0, metadata={"help": "scst: what a nat of divergence from the starting model costs a caption."}
    )
    xe_weight: float = field(
        default=0.0, metadata={"help": "scst: share of the cross entropy (without label smoothing) in the loss."}
    )
    queue_size: int = field(default=57_600, metadata={"help": "retrieval: pairs whose features are compared with."})
    momentum: float = field(
        default=0.995, metadata={"help": "retrieval: how much of their weights momentum encoders keep in a step."}
    )
    alpha: float = field(
        default=0.4, metadata={"help": "retrieval: share of what momentum encoders find in the targets of ITC."}
    )
    negative_all_rank: bool = field(
        default=True, metadata={"help": "retrieval: hard negatives are those of all processes, or of its own alone."}
    )
    rerank_top_k: int = field(
        default=256, metadata={"help": "retrieval: best candidates by cosine, which ITM ranks again; 0 for none."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after N evaluations without a better metric_for_best_model."}
    )

    def __post_init__(self) -> None:
        least = 2 if self.scst_baseline == "leave_one_out" else 1
        if self.num_generations < least:
            raise RecipeError(
                f"num_generations is {self.num_generations}: expected at least {least} with scst_baseline "
                f"{self.scst_baseline!r}."
            )
        for name in ("queue_size", "rerank_top_k"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected at least 0.")
        for name in ("momentum", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected a share from 0 to 1.")
        if not 0 <= self.xe_weight < 1:
            raise RecipeError(f"xe_weight is {self.xe_weight}: expected a share of at least 0 and less than 1.")
        for name in ("cider_reward_weight", "bleu_reward_weight", "kl_coef"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected at least 0.")
        if not self.cider_reward_weight + self.bleu_reward_weight:
            raise RecipeError("cider_reward_weight and bleu_reward_weight are both 0: there would be no reward.")


@dataclass
class FinetuneOptions:
    """What only `finetune` knows."""

    _argument_group_name = "command"

    dry_run: bool = field(default=False, metadata={"help": "Print the plan and stop before the first step."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start afresh instead of resuming."})
    hub_tag: str | None = field(default=None, metadata={"help": "Tag of the published commit, such as 'v1'."})


@dataclass
class EvaluateOptions:
    """What only `evaluate` knows."""

    _argument_group_name = "command"

    predictions: str | None = field(default=None, metadata={"help": "Captions to score, without any model."})
    references: str | None = field(default=None, metadata={"help": "Captions to score them against."})


Options = TypeVar("Options", FinetuneOptions, EvaluateOptions)


@dataclass
class Recipe(Generic[Options]):
    """A parsed recipe. `given` holds the keys as the user gave them, JSON file and command line together."""

    model: ModelArguments
    data: DataArguments
    generation: GenerationArguments
    objective: ObjectiveArguments
    options: Options
    training: CaptionTrainingArguments
    given: dict[str, Any]
    push_to_hub: bool

    @property
    def output_dir(self) -> Path:
        """Where the run leaves its files."""
        return Path(str(self.training.output_dir))

    @property
    def pushes_checkpoints(self) -> bool:
        """Whether checkpoints are published too; Trainer's default, `every_save`, must be asked for."""
        return self.push_to_hub and "hub_strategy" in self.given and self.training.hub_strategy != "end"

    def take_task(self, task: TaskName) -> None:
        """Train or score for `task`, with its defaults in all that was not given."""
        self.objective.task = task
        for key, value in TASKS[task].defaults.items():
            if key not in self.given:
                setattr(self._part_of(key), key, value)

    def _part_of(self, key: str) -> Any:
        parts = (self.model, self.data, self.generation, self.objective, self.training)
        return next(part for part in parts if hasattr(part, key))

    def default_of(self, key: str) -> Any:
        """What a key is if it is not given."""
        if key in TASKS[self.objective.task].defaults:
            return TASKS[self.objective.task].defaults[key]
        groups: tuple[Any, ...] = (
            self.model,
            self.data,
            self.generation,
            self.objective,
            self.options,
            self.training,
        )
        for each in chain.from_iterable(map(dataclasses.fields, groups)):
            if each.name == key:
                return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        return None

    def to_json(self, **resolved: Any) -> dict[str, Any]:
        """The recipe to run again: what was given, with `resolved` values (pinned revisions, full repo name) put in."""
        lasting = {key: value for key, value in self.given.items() if key not in OF_ONE_RUN}
        recipe = lasting | {key: value for key, value in resolved.items() if value is not None}
        # Where the run was written is nobody's business but the user's; its last name is enough to run it again.
        return recipe | {"output_dir": f"outputs/{self.output_dir.name}"}


OF_ONE_RUN = (
    "dry_run",
    "overwrite_output_dir",
    "hub_tag",
    "resume_from_checkpoint",
    "logging_dir",
    "predictions",
    "references",
)
"""Keys that steer one start of a command and are no part of the recipe to run again."""


OF_TRAINING = ("cache_image_embeds", "image_cache", "fsdp", "fsdp_config")
"""Keys by which training reads pictures and is spread over processes, and an evaluation is not."""

GROUPS: tuple[Any, ...] = (ModelArguments, DataArguments, GenerationArguments, ObjectiveArguments)

HELP_EPILOG = """\
Every argument of transformers.Seq2SeqTrainingArguments works too, in the recipe and here; the usual ones:
  --output_dir --num_train_epochs --max_steps --per_device_train_batch_size --per_device_eval_batch_size
  --gradient_accumulation_steps --learning_rate --weight_decay --lr_scheduler_type --warmup_steps --optim
  --label_smoothing_factor --bf16 --gradient_checkpointing --eval_strategy --save_strategy --save_total_limit
  --load_best_model_at_end --metric_for_best_model --resume_from_checkpoint --logging_steps --report_to --seed
  --dataloader_num_workers --push_to_hub --hub_model_id --hub_private_repo --hub_strategy"""


def read_recipe(
    options: type[Options], *, prog: str, description: str, recipe_needed: bool, argv: list[str] | None = None
) -> Recipe[Options]:
    """Parse the command line: a recipe file, if there is one, and overrides.

    Args:
        options: The dataclass of the keys that only this command knows.
        prog: The command, for `--help`.
        description: What it does, for `--help`.
        recipe_needed: Whether the first argument must be a recipe file.
        argv: The command line without the program; default: the process's own.

    Raises:
        RecipeError: Something in it is unknown, of the wrong type or impossible.
    """
    words: list[str] = sys.argv[1:] if argv is None else argv
    if not words or "-h" in words or "--help" in words:
        _print_help(options, prog, description, recipe_needed)
        raise SystemExit(0 if words else 2)
    file: Path | None = None if words[0].startswith("-") else find_recipe(words[0])
    if recipe_needed and file is None:
        raise RecipeError(
            f"The first argument is {words[0]!r}: expected a recipe file, such as recipes/shapes_tiny.json."
        )

    from blip_recipe.training.arguments import CaptionTrainingArguments

    groups: list[Any] = [*GROUPS, options, CaptionTrainingArguments]
    parser = RecipeParser(groups, prog=prog, add_help=False, allow_abbrev=False)
    names: list[str] = [each.name for group in groups for each in dataclasses.fields(group) if each.init]
    content: dict[str, Any] = load_json(file) if file else {}
    if not recipe_needed:
        # Scores of an evaluation do not belong into the run that the recipe describes.
        content = {key: value for key, value in content.items() if key not in ("output_dir", *OF_TRAINING, *OF_ONE_RUN)}
    lists: set[str] = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    words = [*to_words(content, names, lists, words[0]), *words[1:]] if file else words
    default_dir = f"outputs/{file.stem}" if file and recipe_needed else "outputs/evaluate"
    try:
        parsed: tuple[Any, ...] = parser.parse_args_into_dataclasses(
            [f"--output_dir={default_dir}", *words], return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:
        raise RecipeError(str(error)) from error
    model, data, generation, objective, command, training, unknown = parsed
    if unknown:
        aliases = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
        raise unknown_key(unknown[0].lstrip("-").split("=")[0].replace("-", "_"), aliases, "the command line")
    for action in parser._actions:
        action.default = SUPPRESS
    given = vars(parser.parse_known_args(words)[0])
    if token := next((key for key in given if key.endswith("_token") and given[key]), None):
        raise RecipeError(
            f"{token} is given, but a token must not stand in a recipe: set HF_TOKEN or run `hf auth login`."
        )
    # Trainer's own push swallows its failures and uploads pickles: this package pushes, once, at the end.
    push_to_hub, training.push_to_hub = training.push_to_hub, False
    recipe = Recipe(model, data, generation, objective, command, training, given=given, push_to_hub=push_to_hub)
    recipe.take_task(objective.task)
    check_values(recipe)
    return recipe


def check_recipe(recipe: Recipe[FinetuneOptions]) -> None:
    """Find what cannot be trained before anything is loaded.

    Raises:
        RecipeError: Keys that contradict each other.
    """
    from blip_recipe.training.sharding import check_sharding

    model, data, training = recipe.model, recipe.data, recipe.training
    if data.dataset_name is None:
        raise RecipeError("dataset_name is missing: expected a Hub id, a directory, a captions file or 'shapes'.")
    if (model.load_in_8bit or model.load_in_4bit) and not model.use_peft:
        raise RecipeError(
            "Quantised weights cannot be trained: set use_peft to true to train an adapter on top of them."
        )
    if model.use_peft and model.image_size is not None and not model.merge_adapter:
        raise RecipeError(
            "image_size changes position embeddings, which an adapter does not save: set merge_adapter too."
        )
    check_sharding(recipe)
    check_metrics(recipe)
    _check_task(recipe)
    if recipe.objective.stage == "scst" and data.is_streamed:
        raise RecipeError(
            "stage is 'scst' and streaming is true, but self-critical training counts the words of all captions first: "
            "leave one of them out."
        )
    if training.eval_strategy != "no" and data.eval_split is None:
        raise RecipeError(
            f"eval_strategy is {str(training.eval_strategy)!r}, but eval_split does not say what to score."
        )
    _check_push(recipe)
    _check_resumption(training)
    _check_best_model(recipe)


def _means_something(value: Any) -> bool:
    """Whether a key is given for more than to say that it is off."""
    return value is not None and value is not False and value not in ("", "xe")


def _check_task(recipe: Recipe[FinetuneOptions]) -> None:
    task = recipe.objective.task
    for name, keys in TASKS.items():
        given = [key for key in keys.keys if name != task and _means_something(recipe.given.get(key))]
        if given:
            raise RecipeError(
                f"{given[0]} is given, but task is {task!r}: it belongs to {name!r}. Leave one of them out."
            )


def _check_push(recipe: Recipe[FinetuneOptions]) -> None:
    model, training = recipe.model, recipe.training
    if (
        recipe.push_to_hub
        and model.use_peft
        and (not model.merge_adapter or recipe.pushes_checkpoints)
        and Path(model.model_name_or_path).expanduser().exists()
    ):
        raise RecipeError(
            f"model_name_or_path is the local {model.model_name_or_path!r}, which nobody else has: an adapter that is "
            "pushed needs a base model on the Hub. Push the base first, or set merge_adapter without hub_strategy."
        )
    if recipe.push_to_hub and training.hub_revision is not None:
        raise RecipeError(
            f"hub_revision is {training.hub_revision!r}, but a finished model is pushed to main: leave it out; hub_tag "
            "names what is published."
        )


def _check_resumption(training: CaptionTrainingArguments) -> None:
    if training.resume_from_checkpoint in ("true", "True", "last", "false", "False"):
        training.resume_from_checkpoint = None  # resuming from the newest is what a rerun does anyway
    if training.resume_from_checkpoint and not Path(training.resume_from_checkpoint, "trainer_state.json").is_file():
        raise RecipeError(
            f"resume_from_checkpoint is {training.resume_from_checkpoint!r}, which is no checkpoint: expected a "
            "directory with trainer_state.json. Leave it out to go on from the newest checkpoint in output_dir."
        )


def _check_best_model(recipe: Recipe[FinetuneOptions]) -> None:
    training = recipe.training
    if recipe.objective.early_stopping_patience is not None and not training.load_best_model_at_end:
        raise RecipeError(
            "early_stopping_patience is given, but load_best_model_at_end is false: set it, with eval_strategy and "
            "metric_for_best_model, to say what has to become better."
        )
    best = (training.metric_for_best_model or "loss").removeprefix("eval_")
    scores = recipe.generation.score_names(recipe.generation.metrics_while_training())
    known = scores if "+" in best else ["loss", *scores]
    if unknown := [part for part in best.split("+") if part not in known]:
        raise RecipeError(
            f"metric_for_best_model names {unknown[0]!r}, which is not scored while training: {', '.join(known)}."
        )


def _print_help(options: Any, prog: str, description: str, recipe_needed: bool) -> None:
    parser = HfArgumentParser(
        [*GROUPS, options],
        prog=prog,
        usage=f"{prog} {'RECIPE.json' if recipe_needed else '[RECIPE.json]'} [--key value ...]",
        description=description,
        epilog=HELP_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.print_help()
