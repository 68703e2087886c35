"""Tiny answering models for tests: untrained, yet with another answer for another picture and question."""

from __future__ import annotations

from pathlib import Path

import torch
from captioners import write_recipe

from blip_recipe.models.processors import save_processor
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tiny import build_tiny_answerer

QUESTIONS = ["what is it", "what colour is the small cat in the picture", "is there a dog", "how many"]
ANSWERS = [["cat"], ["red", "red", "a dark red", "red"], ["yes", "no", "yes", "a dog", "no"], ["two", "two"]]
WORDS = [*QUESTIONS, *(answer for answers in ANSWERS for answer in answers), "blue"]
GAIN = 1.5
"""Weights this much larger than fresh ones make an untrained model look at its picture and its question."""


def loud(model: BlipForAnswering) -> BlipForAnswering:
    """`model` with larger weights."""
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(GAIN if weights.ndim > 1 else 1.0)
    return model


def save_answerer(directory: Path, *, seed: int = 0, **recipe: object) -> Path:
    """A full answering model in `directory`, with `recipe.json` where `recipe` has keys."""
    torch.manual_seed(seed)
    model, processor = build_tiny_answerer(WORDS)
    loud(model).save_pretrained(directory)
    save_processor(processor, directory)
    if recipe:
        write_recipe(directory, **recipe)
    return directory
