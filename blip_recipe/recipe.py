"""A recipe: one flat JSON file whose keys can be overridden on the command line.

Keys of `transformers.Seq2SeqTrainingArguments` keep their meaning; the rest are the fields of the three dataclasses
below. Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from argparse import SUPPRESS
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from transformers.hf_argparser import HfArgumentParser

from blip_recipe.errors import RecipeError
from blip_recipe.metrics import METRICS

if TYPE_CHECKING:
    from blip_recipe.training_arguments import CaptionTrainingArguments

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
        if self.merge_adapter and not self.use_peft:
            raise RecipeError("merge_adapter is true, but use_peft is false: there will be no adapter to merge.")


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
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column that names the image; rows that share it are one image."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Directory that relative image paths start at."})
    streaming: bool = field(default=False, metadata={"help": "Read the training split row by row, never whole."})
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

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples", "captions_per_image"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}: expected at least 1, or nothing for all.")
        if self.max_caption_length < 3:
            raise RecipeError(f"max_caption_length is {self.max_caption_length}: expected at least 3 tokens.")


@dataclass
class GenerationArguments:
    """How captions are generated and scored. Lengths count the prompt, as in BLIP's own configuration."""

    _argument_group_name = "generation"

    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "cider"],
        metadata={"help": f"Scores of generated captions: {' '.join(METRICS)}."},
    )
    generation_num_beams: int = field(default=3, metadata={"help": "Beams; 1 is greedy search."})
    generation_max_length: int = field(default=20, metadata={"help": "Longest caption in tokens, prompt included."})
    generation_min_length: int = field(default=5, metadata={"help": "Shortest caption in tokens, prompt included."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            raise RecipeError(f"metrics names {unknown[0]!r}, which does not exist; known are {', '.join(METRICS)}.")
        if self.generation_num_beams < 1:
            raise RecipeError(f"generation_num_beams is {self.generation_num_beams}: expected at least 1.")
        if not 0 <= self.generation_min_length <= self.generation_max_length:
            raise RecipeError(
                f"generation_min_length is {self.generation_min_length} and generation_max_length "
                f"{self.generation_max_length}: the minimum may not be over the maximum."
            )

    def generate_kwargs(self) -> dict[str, Any]:
        """What `generate` is called with: beam search without sampling."""
        return {
            "num_beams": self.generation_num_beams,
            "max_length": self.generation_max_length,
            "min_length": self.generation_min_length,
            "do_sample": False,
        }


@dataclass
class Recipe:
    """A parsed recipe. `given` holds the keys as the user gave them, JSON file and command line together."""

    model: ModelArguments
    data: DataArguments
    generation: GenerationArguments
    training: CaptionTrainingArguments
    given: dict[str, Any]
    dry_run: bool = False
    overwrite_output_dir: bool = False

    def to_json(self, **resolved: Any) -> dict[str, Any]:
        """The recipe to run again: what was given, with `resolved` values (pinned revisions, full repo name) put in."""
        return {**self.given, **{key: value for key, value in resolved.items() if value is not None}}


GROUPS = (ModelArguments, DataArguments, GenerationArguments)
