"""The facts of a model card, gathered from a run: what the recipe says, what the trainer noted, what was scored."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blip_recipe.card.callback import CardCallback
from blip_recipe.card.pictures import SCORE_LABELS, choose_samples, ranking_score
from blip_recipe.card.rendering import (
    PLACEHOLDER,
    UNKNOWN,
    CardFacts,
    DecodingFacts,
    Kind,
    OriginFacts,
    ResultFacts,
    SampleFacts,
    ScoreFacts,
    SplitFacts,
    TrainingFacts,
    format_code,
)
from blip_recipe.data.checks import SKIPPED_FILE
from blip_recipe.recipe.parsing import TINY_MODEL
from blip_recipe.recipe.task_keys import TASK_WORDS
from blip_recipe.training.task import find_task

if TYPE_CHECKING:
    from blip_recipe.recipe.parsing import Recipe
    from blip_recipe.training.arguments import CaptionTrainingArguments

logger = logging.getLogger(__name__)

EMBEDDED: dict[str, dict[str, str]] = {TINY_MODEL: {}, "shapes": {"language": "en"}}
"""The model and the data set that come with the package, with what a card would say of them."""

SCORE_ORDER = (
    *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice", "vqa_accuracy", "exact_match"),
    *(f"{direction}_recall_{rank}" for direction in ("text", "image") for rank in (1, 5, 10)),
    "recall_mean",
)
"""As papers list them."""

ENGLISH = {"the", "and", "with", "of"}
ENGLISH_SHARE = 0.25
"""Captions are taken for English if this share has one of these words; of COCO's it is well over half."""

PTB = "the PTB tokenizer of the COCO caption tools"
LIKE_PTB = "in Python, as the COCO caption tools' PTB tokenizer does on ordinary captions (no Java was found)"

HABIT_LABELS = {
    "caption_length": "words a caption",
    "distinct_words": "different words, share of all",
    "repeated_ngrams": "repeated 4-grams, share",
    "bad_endings": "captions ending within a phrase, share",
}
"""What self-critical training is known to spoil, as it is scored beside captions."""

LORA_LAYERS = {
    "captioning": "all linear layers of the text decoder",
    "vqa": "all linear layers of text encoder and decoder",
    "retrieval": "all linear layers of the text encoder",
}

PACKAGES = ("blip-recipe", "transformers", "torch", "datasets", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Source:
    """Where a base model or a data set comes from.

    Attributes:
        name: As the recipe names it: a Hub id, a local path, or what is embedded.
        revision: The commit that was read, where it is known.
        card: Metadata of its own card on the Hub (`license`, `language`, ...); empty where there is none.
    """

    name: str
    revision: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def on_hub(self) -> bool:
        """Whether everybody can get it by this name."""
        return self.name not in EMBEDDED and not Path(self.name).expanduser().exists()

    @property
    def license(self) -> str:
        """The licence that its card names."""
        named = self.card.get("license") or UNKNOWN
        return named if isinstance(named, str) else ", ".join(named)

    def facts(self) -> OriginFacts:
        """What a card says of it: not the directory that a local one lies in, which is nobody's business."""
        shown = self.name if self.on_hub else Path(self.name).expanduser().resolve().name
        return OriginFacts(shown, self.on_hub, self.revision, self.license)


def read_source(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> Source:
    """Look up the commit and the card of a Hub repository; a local or embedded name is taken as it is.

    A repository that cannot be asked is a `Source` without them, and a warning says so: a finished training is worth a
    card that names no licence.
    """
    from huggingface_hub import HfApi

    from blip_recipe.hub.publishing import HUB_ERRORS

    source = Source(name, revision, EMBEDDED.get(name, {}))
    if not source.on_hub:
        return source
    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision)
    except HUB_ERRORS as error:
        logger.warning("The card of %s cannot be read, so ours names no licence for it: %s", name, error)
        return source
    return Source(name, info.sha or revision, info.card_data.to_dict() if info.card_data else {})


def gather_facts(
    recipe: Recipe[Any],
    *,
    kind: Kind,
    repo_id: str | None,
    results: Mapping[str, float],
    predictions: Sequence[Mapping[str, Any]],
    counts: Mapping[str, tuple[int, int]],
    callback: CardCallback,
    base: Source,
    dataset: Source,
    tokenized_with_java: bool,
) -> CardFacts:
    """The facts of a finished run.

    Args:
        recipe: As it was run.
        kind: What was saved.
        repo_id: Where it will be pushed, if that is known.
        results: `all_results.json`.
        predictions: `predictions.jsonl`, of the split that was scored last, as `Task.show` gives its lines.
        counts: (images, captions) of each split that was read, by role.
        callback: That was with the trainer.
        base: The model that was fine-tuned.
        dataset: The data.
        tokenized_with_java: Whether the PTB tokenizer itself cut the captions before they were scored.
    """
    splits = split_facts(recipe, counts)
    return CardFacts(
        kind=kind,
        repo_id=repo_id or PLACEHOLDER,
        base=base.facts(),
        dataset=dataset.facts(),
        dataset_config=recipe.data.dataset_config_name,
        language=find_language(recipe.data.caption_column, dataset.card, predictions),
        splits=splits,
        skipped_rows=count_lines(recipe.output_dir / SKIPPED_FILE),
        decoding=decoding_facts(recipe),
        results=result_facts(results, splits, predictions, tokenized_with_java=tokenized_with_java),
        training=training_facts(recipe, counts["train"], callback),
        task=recipe.objective.task,
    )


def split_facts(recipe: Recipe[Any], counts: Mapping[str, tuple[int, int]]) -> list[SplitFacts]:
    """The splits by role, with the names that the recipe has for them."""
    data = recipe.data
    names = {"train": data.train_split, "eval": data.eval_split, "test": data.test_split}
    limits = {"train": data.max_train_samples, "eval": data.max_eval_samples, "test": data.max_eval_samples}
    return [
        SplitFacts(role, str(names[role]), *counts[role], limited=counts[role][0] == limits[role])
        for role in names
        if role in counts
    ]


def decoding_facts(recipe: Recipe[Any]) -> DecodingFacts:
    """How the captions that were scored were generated."""
    generation = recipe.generation
    return DecodingFacts(
        recipe.data.prompt,
        generation.generation_num_beams,
        generation.generation_max_length,
        generation.generation_min_length,
    )


def result_facts(
    results: Mapping[str, float],
    splits: Sequence[SplitFacts],
    predictions: Sequence[Mapping[str, Any]],
    *,
    tokenized_with_java: bool,
) -> ResultFacts:
    """The scores of the split that `all_results.json` has them for, `test` before `eval`, and its captions."""
    measured = {split.role: split for split in splits if any(key.startswith(f"{split.role}_") for key in results)}
    scored = measured.get("test") or measured.get("eval")
    name = ranking_score(predictions) if predictions else None
    samples = [sample_facts(title, each, name) for title, each in choose_samples(predictions).items()]
    return ResultFacts(
        scored=scored,
        scores=score_facts(results, scored.role) if scored else [],
        habits=habit_facts(results, scored.role) if scored else [],
        tokenization=PTB if tokenized_with_java else LIKE_PTB,
        distinct_captions=len({each["caption"] for each in predictions}),
        samples=samples,
        ranked_by=SCORE_LABELS[name] if name else None,
    )


def score_facts(results: Mapping[str, float], role: str) -> list[ScoreFacts]:
    """The scores of a role in `all_results.json`, each beside the base model's."""
    labels = {name: SCORE_LABELS[name] for name in SCORE_ORDER} | {"loss": "Loss"}
    return [
        ScoreFacts(name, label, results[f"{role}_{name}"], results.get(f"baseline_{name}"))
        for name, label in labels.items()
        if f"{role}_{name}" in results
    ]


def habit_facts(results: Mapping[str, float], role: str) -> list[ScoreFacts]:
    """The habits of the captions of a role, each beside the base model's; self-critical training asks for them."""
    return [
        ScoreFacts(name, label, results[f"{role}_{name}"], results.get(f"baseline_{name}"))
        for name, label in HABIT_LABELS.items()
        if f"{role}_{name}" in results
    ]


def sample_facts(title: str, prediction: Mapping[str, Any], score: str | None) -> SampleFacts:
    """A prediction in words."""
    value = f"{prediction['scores'][score]:.3f}" if score else ""
    return SampleFacts(title, value, prediction["caption"], list(prediction["references"]))


def find_language(
    columns: Sequence[str] | None, card: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]
) -> str | None:
    """The ISO code of the captions: of a column named by it, of a data set of one language, or read off the words."""
    listed = card.get("language") or []
    languages = [listed] if isinstance(listed, str) else listed
    for column in columns or []:
        if column in languages:
            return column
    if len(languages) == 1:
        return languages[0]
    references = [caption.lower().split() for each in predictions for caption in each["references"]]
    english = sum(not ENGLISH.isdisjoint(words) for words in references)
    return "en" if references and english >= ENGLISH_SHARE * len(references) else None


def training_facts(recipe: Recipe[Any], train: tuple[int, int], callback: CardCallback) -> TrainingFacts:
    """What the recipe asked for and the callback noted; `train` is (images, captions) of the split."""
    return TrainingFacts(
        parameters=callback.parameters,
        trained_parameters=callback.trained_parameters,
        quantization=recipe.model.quantization,
        selected_by=recipe.training.metric_for_best_model if callback.best_step else None,
        selected_step=callback.best_step or callback.steps,
        steps=callback.steps,
        settings=describe_training(recipe, train, callback),
        hardware=callback.hardware,
        seconds=callback.seconds,
        peak_memory=callback.peak_memory,
        energy=callback.energy,
        date=datetime.now(UTC).date().isoformat(),
        versions={"Python": platform.python_version()} | installed_versions(PACKAGES),
    )


def describe_training(recipe: Recipe[Any], train: tuple[int, int], callback: CardCallback) -> dict[str, str]:
    """Every setting that the result depends on, by label, in words; `train` is (images, captions) of the split."""
    args: CaptionTrainingArguments = recipe.training
    words = TASK_WORDS[recipe.objective.task]
    parts = (args.train_batch_size, args.gradient_accumulation_steps, args.world_size)
    images, all_captions = math.prod(parts), train[1] / train[0]
    per_image = min(recipe.data.captions_per_image or all_captions, all_captions)
    settings = {
        f"{words.row}s a step": f"{images:,} (batch {parts[0]} × accumulation {parts[1]} × processes {parts[2]})",
        f"{words.row}-{words.text} pairs a step": f"about {images * per_image:,.0f}",
        "captions of an image a step": str(recipe.data.captions_per_image or "all"),
        "epochs, steps": f"{callback.epochs:g}, {callback.steps:,}",
        "optimiser": _name(args.optim),
        "learning rate": f"{args.learning_rate:g} at its peak, {_name(args.lr_scheduler_type)} schedule",
        "warm-up": f"{args.get_warmup_steps(callback.steps):,} steps",
        "weight decay": f"{args.weight_decay:g} on all trained parameters",
        "gradient clipping": f"norm {args.max_grad_norm:g}" if args.max_grad_norm else "none",
        "label smoothing": f"{args.label_smoothing_factor:g}",
        "precision": "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32",
        "trained parameters": f"{callback.trained_parameters:,} of {callback.parameters:,}",
        "image size": f"{callback.image_size} pixels square",
        "augmentation": "random crop, flip and RandAugment" if recipe.data.augmentation == "blip" else "none",
        "training captions": ("cleaned as BLIP's authors do" if recipe.data.normalize_captions else "as written")
        + f", at most {recipe.data.max_caption_length} tokens",
        "prompt": format_code(recipe.data.prompt) if recipe.data.prompt else "none",
        "seed": str(args.seed),
    }
    if recipe.objective.stage == "scst":
        for name in ("image-caption pairs a step", "captions of an image a step", "label smoothing"):
            del settings[name]
        settings |= describe_self_critical(recipe, images)
    if recipe.objective.task != "captioning":
        for name in (
            "training captions",
            "prompt",
            *(("captions of an image a step",) if words.text != "caption" else ()),
        ):
            del settings[name]
    return settings | find_task(recipe.objective.task).settings(recipe) | describe_adaptation(recipe)


def describe_self_critical(recipe: Recipe[Any], images: int) -> dict[str, str]:
    """The settings of self-critical training with `images` a step."""
    objective = recipe.objective
    baselines = {"leave_one_out": "the mean of the other samples of the image", "greedy": "the greedy caption"}
    rewards = [("CIDEr-D", objective.cider_reward_weight), ("BLEU-4", objective.bleu_reward_weight)]
    return {
        "objective": "expected reward of sampled captions (self-critical sequence training), without dropout",
        "reward": " + ".join(f"{weight:g} × {name}" for name, weight in rewards if weight) + ", end token included",
        "samples a step": f"{images * objective.num_generations:,} ({objective.num_generations} an image)",
        "baseline of a sample": baselines[objective.scst_baseline],
        "pull to the starting model": f"{objective.kl_coef:g} a nat" if objective.kl_coef else "none",
        "share of cross entropy": f"{objective.xe_weight:g}",
    }


def describe_adaptation(recipe: Recipe[Any]) -> dict[str, str]:
    """The settings of LoRA, quantisation, frozen parts and memory saving, as far as they were used."""
    model, args = recipe.model, recipe.training
    settings: dict[str, str] = {}
    if model.use_peft:
        targets = ", ".join(map(format_code, model.lora_target_modules or [])) or LORA_LAYERS[recipe.objective.task]
        kinds = [name for name, used in (("DoRA", model.use_dora), ("rank-stabilised", model.use_rslora)) if used]
        settings["LoRA"] = ", ".join(
            [f"rank {model.lora_r}", f"alpha {model.lora_alpha}", f"dropout {model.lora_dropout:g}", *kinds]
        )
        settings["LoRA layers"] = targets
    if model.quantization:
        settings["frozen base"] = {"8bit": "8 bits (LLM.int8())", "4bit": "4 bits (NF4)"}[model.quantization]
    if model.freeze_vision and not model.use_peft:
        settings["image encoder"] = "frozen"
    if args.gradient_checkpointing:
        settings["gradient checkpointing"] = "yes"
    if args.torch_compile:
        settings["torch.compile"] = "yes"
    return settings


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Version by package, of those that are installed."""
    versions: dict[str, str] = {}
    for package in packages:
        with suppress(PackageNotFoundError):  # this package itself may be used from its checkout
            versions[package] = version(package)
    return versions


def count_lines(path: Path) -> int:
    """How many lines a file has; none where there is no file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _name(value: Any) -> str:
    """The plain name of an option that Trainer keeps as text or as an enumeration."""
    return str(getattr(value, "value", value))
