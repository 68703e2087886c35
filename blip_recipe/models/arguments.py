"""Model arguments of recipes. The module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blip_recipe.errors import RecipeError

MISSING = ["true"]
"""`add_tokens` for all words and characters of the training texts that the tokenizer changes."""

Quantization = Literal["8bit", "4bit"]

TINY_MODEL = "tiny"
"""`model_name_or_path` of the tiny model: a small BLIP with new weights and a vocabulary made from the data."""


@dataclass
class ModelArguments:
    """Arguments of the model and its adapter."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        default="Salesforce/blip-image-captioning-base",
        metadata={
            "aliases": ["--model"],
            "help": "Hub id or directory of a model, or of an adapter to evaluate; "
            f"'{TINY_MODEL}' makes a tiny model with new weights.",
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that comes with the model; read it first."}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width of the input in pixels; position embeddings are interpolated."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or directory of another tokenizer of BERT's kind, such as bert-base-multilingual-cased; "
            "the word embeddings are fitted to it."
        },
    )
    add_tokens: list[str] | None = field(
        default=None,
        metadata={
            "help": "Words and characters to add to the tokenizer: a list, a file with one per line, or 'true' for "
            "those of the training texts that the tokenizer changes."
        },
    )
    freeze_vision: bool = field(default=False, metadata={"help": "Freeze the image encoder."})
    drop_path_rate: float = field(
        default=0.0,
        metadata={
            "help": "Drop path rate (stochastic depth) of the last layer of the image encoder. The rate grows linearly "
            "from 0 in the first layer. The original has 0.1 for VQA and for large image encoders."
        },
    )
    hidden_dropout_prob: float | None = field(
        default=None,
        metadata={
            "help": "Dropout of the text network's embeddings and layers; default: that of the model's configuration. "
            "The original has 0.1."
        },
    )
    attention_probs_dropout_prob: float | None = field(
        default=None,
        metadata={
            "help": "Dropout of the text network's attention; default: that of the model's configuration. The original "
            "has 0.1."
        },
    )
    attention_implementation: Literal["eager", "sdpa"] = field(
        default="sdpa", metadata={"help": "Implementation of attention; results agree up to rounding."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the LoRA update, divided by the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the LoRA matrices."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of layers to adapt; default: all attention and feed-forward layers of the text network."
        },
    )
    use_dora: bool = field(default=False, metadata={"help": "Weight-decomposed LoRA (arXiv 2402.09353)."})
    use_rslora: bool = field(default=False, metadata={"help": "Rank-stabilised scaling (arXiv 2312.03732)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the frozen base in 8 bits (needs use_peft)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the frozen base in 4 bits (needs use_peft)."})
    merge_adapter: bool = field(
        default=False, metadata={"help": "Merge the adapter at the end of the run and save a full model."}
    )

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise RecipeError("load_in_8bit and load_in_4bit are both true: choose one.")
        for key in ("load_in_8bit", "load_in_4bit"):
            if getattr(self, key) and self.model_name_or_path == TINY_MODEL:
                raise RecipeError(f"{key} needs a trained model, but model_name_or_path is '{TINY_MODEL}'.")
        if self.use_peft and self.model_name_or_path == TINY_MODEL:
            raise RecipeError(
                f"use_peft needs a trained model, but model_name_or_path is {TINY_MODEL!r}, which has new weights: "
                "train it first, as recipes/shapes_lora.json expects."
            )
        self.merge_adapter &= self.use_peft  # `--use_peft false` turns off what belongs to it
        self._check_vocabulary()

    def _check_vocabulary(self) -> None:
        self.add_tokens = None if self.add_tokens is None else read_tokens(self.add_tokens)
        changed = {"tokenizer_name": self.tokenizer_name, "add_tokens": self.add_tokens}
        key = next((key for key, value in changed.items() if value), None)
        if key and self.model_name_or_path == TINY_MODEL:
            raise RecipeError(
                f"{key} is given, but model_name_or_path is {TINY_MODEL!r}, whose vocabulary is made from the training "
                f"texts: leave {key} out."
            )
        if key and self.use_peft:
            raise RecipeError(
                f"{key} and use_peft are set, but an adapter neither trains nor saves word embeddings: train all "
                "weights (use_peft false). An adapter can be trained on the result."
            )

    @property
    def dropouts(self) -> dict[str, float]:
        """The keys of drop path and text dropout that are set and not 0."""
        names = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def quantization(self) -> Quantization | None:
        """The quantisation of the frozen base model; None if it is not quantised."""
        return "4bit" if self.load_in_4bit else "8bit" if self.load_in_8bit else None


def read_tokens(given: list[str]) -> list[str] | None:
    """Read the key `add_tokens`: tokens, or a file with one of them a line, or `MISSING`; None for `false`.

    Raises:
        RecipeError: A token has a space, or the file is empty.
    """
    if [each.lower() for each in given] in (MISSING, ["false"]):
        return MISSING if given[0].lower() == "true" else None
    if len(given) == 1 and Path(given[0]).expanduser().is_file():
        given = Path(given[0]).expanduser().read_text(encoding="utf-8-sig").split("\n")
    tokens = [token.strip() for token in given if token.strip()]
    wrong = next((token for token in tokens if len(token.split()) > 1), None)
    if wrong is not None or not tokens:
        found = "has no token" if wrong is None else f"has the token {wrong!r:.60}, with a space"
        raise RecipeError(
            f"add_tokens {found}: expected true, a list of words and characters, or a file with one of them a line."
        )
    return tokens
