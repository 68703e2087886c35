"""The keys of a recipe that say which model is trained, and how much of it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from blip_recipe.errors import RecipeError

Quantization = Literal["8bit", "4bit"]

TINY_MODEL = "tiny"
"""`model_name_or_path` of the embedded model: a tiny BLIP with new weights and a vocabulary made from the data."""


@dataclass
class ModelArguments:
    """Which BLIP is fine-tuned, and how much of it."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        default="Salesforce/blip-image-captioning-base",
        metadata={
            "aliases": ["--model"],
            "help": f"Hub id or directory of a BLIP of the task, or of its adapter; '{TINY_MODEL}' is the embedded "
            "model.",
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
    merge_adapter: bool = field(default=False, metadata={"help": "Merge the adapter: save a plain model."})

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
