"""Model cards: true to the run, whole, and readable by the Hub."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from blip_recipe.card_facts import CardCallback, Source, gather_facts
from blip_recipe.model_card import CardFacts, render_card
from blip_recipe.recipe import FinetuneOptions, Recipe, read_recipe
from blip_recipe.resources import resource_folder

GOLDEN = Path(__file__).parent / "golden"

BASE = Source(
    "Salesforce/blip-image-captioning-base", "82a37760796d32b1411fe092ab5d4e227313294b", {"license": "bsd-3-clause"}
)
COCO = Source(
    "romrawinjp/multilingual-coco",
    "d61d80b3f3260c18326209467b2842b89cc83f96",
    {"license": "cc-by-4.0", "language": ["en", "de"]},
)
SCORES = {
    "bleu_1": 0.79123456,
    "bleu_2": 0.63456789,
    "bleu_3": 0.49876543,
    "bleu_4": 0.38654321,
    "meteor": 0.30123456,
    "rouge_l": 0.59654321,
    "cider": 1.32987654,
    "loss": 2.01234567,
}
PREDICTIONS: list[dict[str, Any]] = [
    {
        "image_id": 7,
        "caption": "a dog runs on a beach",
        "references": ["A dog runs on the beach.", "a dog, wet & happy"],
        "scores": {"cider": 2.5},
    },
    {
        "image_id": 8,
        "caption": "two cats | on a sofa",
        "references": ["Two cats <b>sleep</b> on a sofa.", "cats_on_a_sofa", "a\nline"],
        "scores": {"cider": 1.25},
    },
    {"image_id": 9, "caption": "a man", "references": ["A surfer with a board."], "scores": {"cider": 0.0}},
]
COUNTS = {"train": (113_287, 566_747), "eval": (5_000, 25_010), "test": (3, 6)}


def make_recipe(name: str, *words: str) -> Recipe[FinetuneOptions]:
    path = resource_folder("recipes") / f"{name}.json"
    return read_recipe(
        FinetuneOptions, prog="", description="", recipe_needed=True, argv=[str(path), "--use_cpu=true", *words]
    )


def make_callback(recipe: Recipe[FinetuneOptions]) -> CardCallback:
    """What the callback notes in a run of fixed length on a fixed machine."""
    callback = CardCallback()
    trained = 2_654_208 if recipe.model.use_peft else 247_414_076
    vars(callback).update(
        seconds=7384.4,
        peak_memory=21 * 2**30,
        hardware="1 × NVIDIA A100-SXM4-80GB",
        parameters=247_414_076 + (trained if recipe.model.use_peft else 0),
        trained_parameters=trained,
        image_size=384,
        steps=11_110,
        epochs=5.0,
        best_step=8_888,
    )
    return callback


def make_facts(name: str, *words: str, **changes: Any) -> CardFacts:
    recipe = make_recipe(name, *words)
    arguments: dict[str, Any] = {
        "kind": "merged" if recipe.model.merge_adapter else "lora" if recipe.model.use_peft else "full",
        "repo_id": "lab/blip-coco",
        "results": {f"test_{key}": value for key, value in SCORES.items()}
        | {f"baseline_{key}": value / 2 for key, value in SCORES.items()}
        | {f"eval_{key}": value / 3 for key, value in SCORES.items()}
        | {"train_runtime": 12.0, "epoch": 5.0, "test_runtime": 3.0},
        "predictions": PREDICTIONS,
        "counts": COUNTS,
        "callback": make_callback(recipe),
        "base": BASE,
        "dataset": COCO,
        "tokenized_with_java": True,
    }
    facts = gather_facts(recipe, **arguments | changes)
    # What no two machines and days share.
    return dataclasses.replace(facts, date="2026-01-31", versions={"Python": "3.11.4", "transformers": "5.24.0"})


@pytest.mark.parametrize(
    ("golden", "recipe", "words"),
    [
        ("full", "coco_full", []),
        ("lora", "coco_qlora_4bit", ["--use_dora=true"]),
        ("merged", "coco_lora", ["--merge_adapter=true", "--prompt="]),
    ],
)
def test_a_whole_card_of_each_kind(golden: str, recipe: str, words: list[str]) -> None:
    path = GOLDEN / f"card_{golden}.md"
    card = render_card(make_facts(recipe, *words))
    if "BLIP_RECIPE_WRITE_GOLDEN" in os.environ:
        path.write_text(card, encoding="utf-8")
    assert card == path.read_text(encoding="utf-8")
