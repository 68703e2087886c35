"""Training arguments shared by all tasks. The module does not import torch, so that `--help` is fast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.intervals import RESAMPLES, check_resamples
from blip_recipe.metrics.scores import METRICS, SCORE_NAMES, ScoreTokenizer
from blip_recipe.models.decoding import EarlyStopping
from blip_recipe.training.score_arguments import CaptionScoreArguments

MAY_CHANGE = re.compile(
    "output_dir|overwrite_output_dir|push_to_hub|hub_.*|report|report_to|run_name|project|trackio_.*|log_.*|logging_.*"
    "|tracked_.*"
    "|disable_tqdm|save_total_limit|skip_memory_metrics|dataloader_.*|torch_compile.*|attention_implementation"
    "|gradient_checkpointing.*|activation_checkpointing.*|per_device_eval_batch_size|eval_accumulation_steps|ddp_.*"
)
"""Arguments that a resumed run may change. They set paths, logging, speed and memory; beyond rounding, they change
neither the trained weights nor the scores."""


@dataclass
class BlipArguments:
    """Training arguments that all tasks share.

    Attributes:
        known_metrics: The metrics of the task.
        score_names: The score names of each metric that does not use its own name.
        fitted_keys: Keys that follow the data where they are not given.
        text_notes: What a look at the tokenised texts found, a sentence each; None before the look.
    """

    _argument_group_name = "training"

    known_metrics: ClassVar[tuple[str, ...]] = ()
    score_names: ClassVar[dict[str, tuple[str, ...]]] = {}
    fitted_keys: ClassVar[tuple[str, ...]] = ()

    metrics: list[str] = field(default_factory=list, metadata={"help": "Metrics to compute."})
    eval_metrics: list[str] | None = field(
        default=None,
        metadata={"help": "Metrics during training; default: `metrics` without SPICE, which is slow."},
    )
    bootstrap_resamples: int = field(
        default=RESAMPLES,
        metadata={
            "help": "Resamples for intervals of the final scores and for the test against the base model; 0: no "
            "intervals and no test."
        },
    )
    normalize_captions: bool = field(
        default=True, metadata={"help": "Clean training texts as the original does (case, punctuation, length)."}
    )
    max_caption_length: int = field(default=40, metadata={"help": "Maximum text length in tokens, prompt included."})
    augmentation: Literal["blip", "none"] = field(
        default="blip", metadata={"help": "'blip' (random crop, flip and RandAugment, as in the original) or 'none'."}
    )
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Directory of resized copies of large and remote pictures, which training reads instead; 'true': a "
            "directory in the Hugging Face cache."
        },
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={"help": "Number of images (VQA: questions) that each worker of a stream shuffles at a time."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after N evaluations in which metric_for_best_model did not improve."}
    )
    report: bool = field(
        default=True, metadata={"help": "Write `report.html`, a page of every scored picture and its texts."}
    )
    push_report: bool = field(
        default=False,
        metadata={"help": "Publish `report.html` with the model. It shows small copies of the scored pictures."},
    )
    tracked_pictures: int = field(
        default=8,
        metadata={
            "help": "Number of pictures whose generated texts go as a table to the trackers of report_to at each "
            "evaluation during training; 0: no table."
        },
    )

    def __post_init__(self) -> None:
        self.text_notes: list[str] | None = None
        if self.push_report and not self.report:
            raise RecipeError("push_report is true and report is false: expected report true, or no push_report.")
        check_not_negative(self, "tracked_pictures")
        # Set by `plan_steps` for a stream.
        self.steps_per_pass = 0
        check_at_least_one(self, "shuffle_buffer_size")
        if self.max_caption_length is not None and self.max_caption_length < 3:
            raise RecipeError(f"max_caption_length is {self.max_caption_length}: expected at least 3 tokens.")
        if self.image_cache is not None and self.image_cache.lower() == "false":
            self.image_cache = None
        check_resamples(self.bootstrap_resamples, "bootstrap_resamples")
        self._check_metrics()

    def _check_metrics(self) -> None:
        if unknown := [name for name in self.metrics if name not in self.known_metrics]:
            raise RecipeError(
                f"metrics names {unknown[0]!r}, which this task does not have: expected some of "
                f"{', '.join(self.known_metrics)}."
            )
        if extra := [name for name in self.metrics_while_training() if name not in self.metrics]:
            raise RecipeError(f"eval_metrics names {extra[0]!r}: expected some of metrics ({', '.join(self.metrics)}).")

    def metrics_while_training(self) -> list[str]:
        """The metrics of evaluations during training."""
        return [name for name in self.metrics if name != "spice"] if self.eval_metrics is None else self.eval_metrics

    def score_settings(self) -> dict[str, str]:
        """The settings to record beside scores, which cannot be compared with those of other settings."""
        return {}

    def scores(self, metrics: Sequence[str] | None = None) -> list[str]:
        """The score names of `metrics` (default: all metrics of these arguments)."""
        asked = self.metrics if metrics is None else metrics
        return [name for metric in asked for name in self.score_names.get(metric, (metric,))]


@dataclass
class EmbeddingArguments(BlipArguments):
    """Arguments of tasks that can train on cached embeddings of pictures."""

    cache_image_embeds: bool = field(
        default=False,
        metadata={
            "help": "Encode each picture once and cache the embeddings on disk (0.9 MB per picture at base size in "
            "bf16); needs a frozen image encoder and no augmentation."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_image_embeds and self.image_cache is not None:
            raise RecipeError("cache_image_embeds and image_cache are both given: use only one of them.")
        if self.cache_image_embeds and self.augmentation != "none":
            raise RecipeError(
                f"cache_image_embeds is true and augmentation is {self.augmentation!r}: expected augmentation 'none'."
            )


@dataclass
class GenerationArguments(BlipArguments):
    """Arguments of text generation. Lengths include the prompt, as in BLIP's own configuration.

    Attributes:
        beam_settings: Arguments without effect where there is one beam, and their usual values.
    """

    beam_settings: ClassVar[dict[str, Any]] = {"generation_length_penalty": 1.0, "generation_early_stopping": False}

    generation_num_beams: int = field(default=3, metadata={"help": "Number of beams; 1 is greedy search."})
    generation_max_length: int = field(default=20, metadata={"help": "Maximum length in tokens, prompt included."})
    generation_min_length: int = field(default=5, metadata={"help": "Minimum length in tokens, prompt included."})
    generation_repetition_penalty: float = field(
        default=1.0, metadata={"help": "Penalty for tokens that are already in the text; 1: none."}
    )
    generation_no_repeat_ngram_size: int = field(
        default=0, metadata={"help": "Sequences of this many tokens may occur only once in a text; 0: no limit."}
    )
    generation_length_penalty: float = field(
        default=1.0, metadata={"help": "Above 1, beam search prefers longer texts; below, shorter ones."}
    )
    generation_early_stopping: EarlyStopping = field(
        default=False,
        metadata={
            "help": "When beam search ends. true: when there are as many complete texts as beams; 'never': when no "
            "other text can be better; false: when no other is likely to be better."
        },
    )

    def __post_init__(self) -> None:
        if self.generation_num_beams < 1:
            raise RecipeError(f"generation_num_beams is {self.generation_num_beams}: expected at least 1.")
        shortest, longest = self.generation_min_length, self.generation_max_length
        if (shortest or 0) < 0 or (None not in (shortest, longest) and shortest > longest):
            raise RecipeError(
                f"generation_min_length is {self.generation_min_length} and generation_max_length "
                f"{self.generation_max_length}: expected a minimum of at least 0 and at most the maximum."
            )
        if self.generation_repetition_penalty <= 0:
            raise RecipeError(
                f"generation_repetition_penalty is {self.generation_repetition_penalty}: expected more than 0; 1 is "
                "none."
            )
        if self.generation_no_repeat_ngram_size < 0:
            raise RecipeError(
                f"generation_no_repeat_ngram_size is {self.generation_no_repeat_ngram_size}: expected at least 0, "
                "which is no limit."
            )
        if self.generation_early_stopping not in (True, False, "never"):
            raise RecipeError(
                f"generation_early_stopping is {self.generation_early_stopping!r}: expected true, false or 'never'."
            )
        for name, usual in self.beam_settings.items():
            value = getattr(self, name)
            if value != usual and self.generation_num_beams == 1:
                raise RecipeError(
                    f"{name} is {value}, but generation_num_beams is 1: only beam search compares texts of different "
                    "lengths. Set generation_num_beams to 2 or more."
                )
        super().__post_init__()

    def generate_kwargs(self) -> dict[str, Any]:
        """Arguments of `generate` for beam search without sampling."""
        return {
            "num_beams": self.generation_num_beams,
            "max_length": self.generation_max_length,
            "min_length": self.generation_min_length,
            "repetition_penalty": self.generation_repetition_penalty,
            "no_repeat_ngram_size": self.generation_no_repeat_ngram_size,
            "length_penalty": self.generation_length_penalty,
            "early_stopping": self.generation_early_stopping,
            "do_sample": False,
        }


def check_at_least_one(arguments: BlipArguments, *names: str) -> None:
    """Check keys that are open (None) or at least 1.

    Raises:
        RecipeError: A value is below 1.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise RecipeError(f"{name} is {value}: expected at least 1, or null for the default.")


def check_not_negative(arguments: BlipArguments, name: str) -> None:
    """Check that a number is at least 0.

    Raises:
        RecipeError: It is negative.
    """
    if getattr(arguments, name) < 0:
        raise RecipeError(f"{name} is {getattr(arguments, name)}: expected at least 0.")


@dataclass
class CaptionTextArguments(CaptionScoreArguments, GenerationArguments):
    """Arguments of captions that are trained on, generated and scored."""

    _argument_group_name = "captions"

    known_metrics: ClassVar[tuple[str, ...]] = tuple(METRICS)
    score_names: ClassVar[dict[str, tuple[str, ...]]] = SCORE_NAMES
    has_own_prompts: ClassVar[bool] = False
    fitted_keys: ClassVar[tuple[str, ...]] = ("max_caption_length", "generation_min_length", "generation_max_length")

    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "cider"], metadata={"help": f"Metrics: {' '.join(METRICS)}."}
    )
    score_tokenizer: ScoreTokenizer = field(
        default="ptb",
        metadata={
            "help": "How captions are split for scores: into words, as by the COCO tools (ptb), or into characters in "
            "scripts without spaces between words, such as Chinese, Japanese and Thai (char)."
        },
    )
    max_words: int | None = field(
        default=None,
        metadata={"help": "Maximum number of words of a training caption; default: no limit. The original has 30."},
    )
    max_caption_length: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Maximum caption length in tokens, prompt included; default: 40, or the longest training caption "
            "if it is longer."
        },
    )
    generation_max_length: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Maximum length of generated captions in tokens, prompt included; default: the longest training "
            "caption."
        },
    )
    generation_min_length: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Minimum length of generated captions in tokens, prompt included; default: the shortest training "
            "caption."
        },
    )

    def __post_init__(self) -> None:
        check_at_least_one(self, "max_words")
        super().__post_init__()

    def score_settings(self) -> dict[str, str]:
        """The tokenizer of scores, unless it is that of the COCO tools, and the models of scores."""
        tokenizer = {} if self.score_tokenizer == "ptb" else {"score_tokenizer": self.score_tokenizer}
        return super().score_settings() | tokenizer


@dataclass
class MomentumArguments(BlipArguments):
    """Arguments of ITC and ITM with momentum encoders.

    Attributes:
        task_name: The name of the task, for error messages.
    """

    _argument_group_name = "momentum"

    task_name: ClassVar[str]

    captions_per_image: int = field(default=1, metadata={"help": "Captions of each image in an epoch; must be 1."})
    queue_size: int = field(
        default=57_600, metadata={"help": "Number of pairs from earlier steps that ITC compares each pair with."}
    )
    momentum: float = field(
        default=0.995, metadata={"help": "Share of their own weights that the momentum encoders keep at each step."}
    )
    alpha: float = field(
        default=0.4, metadata={"help": "Share of the momentum encoders' similarities in the targets of ITC."}
    )
    negative_all_rank: bool = field(
        default=True,
        metadata={"help": "Draw hard negatives from the batches of all processes, not only of the own one."},
    )

    def __post_init__(self) -> None:
        check_not_negative(self, "queue_size")
        for name in ("momentum", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is {getattr(self, name)}: expected a number from 0 to 1.")
        if self.captions_per_image != 1:
            raise RecipeError(
                f"task is {self.task_name!r} and captions_per_image is {self.captions_per_image}: expected 1. Each "
                "epoch samples one caption per image."
            )
        super().__post_init__()
