"""Build facts of a model card from results, predictions and installed packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from blip_recipe.card.facts import ResultFacts, SampleFacts, ScoreFacts
from blip_recipe.card.pictures import SCORE_LABELS, choose_samples, ranking_score
from blip_recipe.metrics.comparison import P_VALUE
from blip_recipe.metrics.intervals import ENDS, is_end
from blip_recipe.metrics.scores import SCORE_NAMES

if TYPE_CHECKING:
    from blip_recipe.card.facts import SplitFacts

SCORE_ORDER = (
    *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice", "vqa_accuracy", "exact_match"),
    *(f"{direction}_recall_{rank}" for direction in ("text", "image") for rank in (1, 5, 10)),
    "recall_mean",
    *("clip_score", "ref_clip_score", "itm_score", *SCORE_NAMES["self_retrieval"]),
    *(*SCORE_NAMES["diversity"], "novel", *SCORE_NAMES["chair"]),
)
"""Order of the scores in the card, as in papers."""

ENGLISH = {"the", "and", "with", "of"}
ENGLISH_SHARE = 0.25
"""Captions count as English if at least this share has one of these words. For COCO it is well over half."""

PTB = "the PTB tokenizer of the COCO caption tools"
CHARACTERS = "in scripts that write no spaces between words, each character is a word (`score_tokenizer` `char`); then "

HABIT_LABELS = {
    "caption_length": "words a caption",
    "distinct_words": "different words, share of all",
    "repeated_ngrams": "repeated 4-grams, share",
    "bad_endings": "captions ending within a phrase, share",
}
"""Labels of the caption properties that self-critical training may degrade."""

PACKAGES = ("blip-recipe", "transformers", "torch", "datasets", "peft", "bitsandbytes")


def result_facts(
    results: Mapping[str, float],
    splits: Sequence[SplitFacts],
    predictions: Sequence[Mapping[str, Any]],
    *,
    in_characters: bool = False,
    models: Mapping[str, str] | None = None,
) -> ResultFacts:
    """Build the results of the last of `splits` that has scores."""
    measured = [
        split for split in splits if split.role != "train" and any(key.startswith(f"{split.role}_") for key in results)
    ]
    scored = measured[-1] if measured else None
    # Without scores of this split, the predictions belong to another model.
    shown = predictions if scored else []
    name = ranking_score(shown) if shown else None
    samples = [sample_facts(title, each, name) for title, each in choose_samples(shown).items()]
    return ResultFacts(
        scored=scored,
        scores=score_facts(results, scored.role) if scored else [],
        groups=group_facts(results, scored.role) if scored else [],
        habits=habit_facts(results, scored.role) if scored else [],
        tokenization=(CHARACTERS if in_characters else "") + PTB,
        distinct_captions=len({each["caption"] for each in shown}),
        samples=samples,
        ranked_by=SCORE_LABELS[name] if name else None,
        models=dict(models or {}),
    )


def score_facts(results: Mapping[str, float], role: str) -> list[ScoreFacts]:
    """The scores of a role in `all_results.json`, with those of the base model."""
    habits = HABIT_LABELS if _has_habits(results, role) else {}
    labels = {name: SCORE_LABELS[name] for name in SCORE_ORDER if name not in habits} | {"loss": "Loss"}
    return [score_fact(results, role, name, label) for name, label in labels.items() if f"{role}_{name}" in results]


def score_fact(results: Mapping[str, float], role: str, name: str, label: str) -> ScoreFacts:
    """A score of a role, with that of the base model and what is known about how sure both are."""
    keys = f"{role}_{name}", f"baseline_{name}"
    own, base = ([results[f"{key}_{end}"] for end in ENDS if f"{key}_{end}" in results] or None for key in keys)
    p_value = results.get(f"{keys[0]}_{P_VALUE}")
    return ScoreFacts(name, label, results[keys[0]], results.get(keys[1]), own, base, p_value)


def group_facts(results: Mapping[str, float], role: str) -> list[ScoreFacts]:
    """The scores of each group of a role's images, with those of the base model; none without `group_column`."""
    names = [
        (name, key.removeprefix(f"{role}_{name}_"))
        for name in SCORE_ORDER
        for key in results
        if key.startswith(f"{role}_{name}_") and not is_end(key, results)
    ]
    return [score_fact(results, role, f"{name}_{group}", f"{SCORE_LABELS[name]} of {group}") for name, group in names]


def habit_facts(results: Mapping[str, float], role: str) -> list[ScoreFacts]:
    """The caption properties of a role, with those of the base model. Only self-critical training measures them."""
    if not _has_habits(results, role):
        return []
    return [
        ScoreFacts(name, label, results[f"{role}_{name}"], results.get(f"baseline_{name}"))
        for name, label in HABIT_LABELS.items()
        if f"{role}_{name}" in results
    ]


def _has_habits(results: Mapping[str, float], role: str) -> bool:
    """Whether self-critical training measured habits; the length of captions is also a score of `diversity`."""
    return f"{role}_distinct_1" not in results or f"{role}_bad_endings" in results


def sample_facts(title: str, prediction: Mapping[str, Any], score: str | None) -> SampleFacts:
    """Build a sample of the card from a prediction; `before` in it is the caption of the untouched base model."""
    value = f"{prediction['scores'][score]:.3f}" if score else ""
    return SampleFacts(title, value, prediction["caption"], list(prediction["references"]), prediction.get("before"))


def find_language(
    columns: Sequence[str] | None, card: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]
) -> str | None:
    """Find the ISO code of the captions from a column's name, the data set's only language, or common English words."""
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


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of the installed ones of `packages`."""
    versions: dict[str, str] = {}
    for package in packages:
        with suppress(PackageNotFoundError):  # blip_recipe may be used from a checkout
            versions[package] = version(package)
    return versions
