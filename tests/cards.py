"""Facts of model cards for tests: from the packaged recipes, as a run of fixed length would leave them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from blip_recipe.card.callback import CardCallback
from blip_recipe.card.facts import CardFacts, Source, Sources
from blip_recipe.data.resources import resource_folder
from blip_recipe.models.adapters import lora_config
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.parsing import Recipe, read_recipe
from blip_recipe.training.caption_texts import fit_lengths
from blip_recipe.training.publishing import gather_facts

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
        "before": "there is a dog | on the beach",
        "references": ["A dog runs on the beach.", "a dog, wet & happy"],
        "scores": {"cider": 2.5},
    },
    {
        "image_id": 8,
        "caption": "two cats | on a sofa",
        "before": "two cats",
        "references": ["Two cats <b>sleep</b> on a sofa.", "cats_on_a_sofa", "a\nline"],
        "scores": {"cider": 1.25},
    },
    {
        "image_id": 9,
        "caption": "a man",
        "before": "a surfer with a surf board",
        "references": ["A surfer with a board."],
        "scores": {"cider": 0.0},
    },
]
COUNTS = {"train": (113_287, 566_747), "eval": (5_000, 25_010), "test": (3, 6)}


def make_recipe(name: str, *words: str) -> Recipe[FinetuneOptions]:
    path = resource_folder("recipes") / f"{name}.json"
    return read_recipe(
        FinetuneOptions, prog="", description="", recipe_needed=True, argv=[str(path), "--use_cpu=true", *words]
    )


def make_callback(recipe: Recipe[FinetuneOptions], **noted: Any) -> CardCallback:
    """What the callback notes in a run of fixed length on a fixed machine; `noted` is what else it notes."""
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
        lora=lora_config(recipe.model),
        quantization=recipe.model.quantization,
        has_frozen_vision=recipe.model.use_peft or recipe.model.freeze_vision,
    )
    vars(callback).update(noted)
    return callback


def make_facts(
    name: str,
    *words: str,
    base: Source = BASE,
    dataset: Source = COCO,
    noted: dict[str, Any] | None = None,
    skipped_rows: int = 0,
    text_notes: list[str] | None = None,
    **changes: Any,
) -> CardFacts:
    recipe = make_recipe(name, *words)
    recipe.training.text_notes = text_notes
    if recipe.training.fitted_keys:
        fit_lengths(recipe.training, [], positions=512)
    counts: dict[str, tuple[int, int]] = changes.get("counts", COUNTS)
    limits = {role: limit for role, (_, limit) in recipe.data.splits().items()}
    sources = Sources(
        base,
        dataset,
        dataset_config=recipe.data.dataset_config_name,
        splits={role: str(split) for role, (split, _) in recipe.data.splits().items()},
        limited=[role for role, (rows, _) in counts.items() if rows == limits[role]],
        columns=getattr(recipe.data, "caption_column", None) or (),
        skipped_rows=skipped_rows,
    )
    arguments: dict[str, Any] = {
        "kind": "merged" if recipe.model.merge_adapter else "lora" if recipe.model.use_peft else "full",
        "repo_id": "lab/blip-coco",
        "sources": sources,
        "results": {f"test_{key}": value for key, value in SCORES.items()}
        | {f"baseline_{key}": value / 2 for key, value in SCORES.items()}
        | {f"eval_{key}": value / 3 for key, value in SCORES.items()}
        | {"train_runtime": 12.0, "epoch": 5.0, "test_runtime": 3.0},
        "predictions": PREDICTIONS,
        "counts": counts,
        "callback": make_callback(recipe, **noted or {}),
    }
    facts = gather_facts(recipe.trainer, recipe.training, **arguments | changes)
    # What no two machines and days share.
    volatile: dict[str, Any] = {"date": "2026-01-31", "versions": {"Python": "3.11.4", "transformers": "5.24.0"}}
    return dataclasses.replace(facts, training=dataclasses.replace(facts.training, **volatile))


def train(folder: Path, steps: int, *words: str) -> CardCallback:
    """Train the tiny model up to a step, from the checkpoint that is there."""
    from blip_recipe.data.load import load_splits
    from blip_recipe.recipe.building import build_model
    from blip_recipe.training.checkpoints import last_checkpoint

    settings = "--max_steps={} --save_steps=2 --save_strategy=steps --eval_strategy=no --load_best_model_at_end=false"
    small = "--max_train_samples=8 --per_device_train_batch_size=2 --logging_steps=1 --dataloader_num_workers=0"
    recipe = make_recipe(
        "shapes_tiny",
        *settings.format(steps).split(),
        *small.split(),
        "--metrics=bleu",
        f"--output_dir={folder}",
        *words,
    )
    recipe.data.eval_split = recipe.data.test_split = None
    rows = load_splits(recipe.data, recipe.task.load_split)["train"]
    model, processor = build_model(recipe, rows)
    trainer = recipe.trainer(model, recipe.training, rows, processing_class=processor)
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.card
