"""Measure whether Grad-CAM finds the objects of drawn scenes. From the checkout:

python -m benchmarks.explain                                         # trains three models; 15 minutes on one core
python -m benchmarks.explain outputs/shapes_tiny outputs/shapes_retrieval          # measures trained models too
python -m benchmarks.explain --kinds captioner --steps 100 --scenes 20             # a quick run

The models are those of the package for drawn scenes, with patches of 16 pixels instead of 48: a scene then has 6 x 6
patches. With the 2 x 2 patches of the quickstart, an object is a sixth to a half of its patch, so that even a map with
all weight in the right patch has four times the object's share. A captioner learns one caption of each scene, a matcher
to tell it from the caption with another colour or form in it, and an answerer the colour of the object in a place.

Each object of 100 test scenes, whose pairs of objects are not in the training scenes, is looked for in the map of the
phrase that names it in the scene's caption ("red circle"), and in those of its two words, colour and form. The map of a
phrase is the mean of its words'. A matcher is also asked for a text that names this object alone ("a red circle"), with
the mean over its words, as LAVIS's `compute_gradcam` averages. An answerer's map is that of the answer, the colour of
the object. The weight of a patch is spread evenly over it. "weight" is the mean share of a map's weight inside the
object's box, "area" the mean share of the picture that the box is, and "ratio" their quotient: 1 for a map without any
idea. "found" is the share of objects whose own ratio is 3 or more.

Clamping, the mean over heads and tokens, and what is left out (special tokens, the class token of the picture) are as
in LAVIS and ALBEF, and none of it was chosen by these figures.

Criterion: the ratio of the phrase (answerer: of the answer) is at least 3 in the default layer of each model that is
trained here; else the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.common import RESULTS, machine, write_results
from blip_recipe import load_explainer
from blip_recipe.captioning.explanation import CaptionExplainer
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.data.captions import normalize_question
from blip_recipe.data.shapes import (
    COLOURS,
    FORMS,
    SIZE,
    Scene,
    Thing,
    describe_scene,
    draw_scene,
    make_scenes,
    shapes_vocabulary,
)
from blip_recipe.errors import run_command
from blip_recipe.models import tiny
from blip_recipe.models.contrastive import MATCHING
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.models.matching import tokenize_texts
from blip_recipe.models.text import IGNORED
from blip_recipe.retrieval.explanation import MatchExplainer
from blip_recipe.retrieval.tiny import build_tiny_retriever
from blip_recipe.vqa.collator import encode_answers, encode_questions
from blip_recipe.vqa.explanation import AnswerExplainer
from blip_recipe.vqa.questions import questions_vocabulary
from blip_recipe.vqa.tiny import build_tiny_answerer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from blip_recipe.models.gradcam import Explainer

LEAST_RATIO = 3
PATCH_SIZE = 16
TRAINED_SCENES = 6400
BATCH = 32
WARMUP = 50
LEARNING_RATE = 1e-3
QUESTION = "What colour is the thing in the {place}?"


def main() -> None:
    """Train the models, measure them and those that are given, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="directories of trained captioners and matchers")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS), help="models to train")
    parser.add_argument("--steps", type=int, help="training steps; default: 800, and 2,000 for matcher and answerer")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULTS / "explain_cpu.json")
    options = parser.parse_args()
    rows = []
    for kind in options.kinds:
        steps = options.steps or KINDS[kind].steps
        rows += measure_layers(f"{kind}, {steps} steps", train(kind, steps), options.scenes)
    trained = len(rows)
    for directory in options.models:
        rows += measure_layers(directory.name, load_explainer(directory, device="cpu"), options.scenes)
    write_results(options.output, machine(["torch", "transformers"]), rows)
    named = [row for row in rows[:trained] if row["default"] and row["word"] in ("phrase", "answer")]
    if any(row["ratio"] < LEAST_RATIO for row in named):
        sys.exit(f"expected a ratio of at least {LEAST_RATIO} for the named object")


def build(kind: str, seed: int = 0) -> Explainer:
    """Build a tiny model of a kind with new weights and patches of `PATCH_SIZE`, and return its explainer."""
    torch.manual_seed(seed)
    usual, tiny.PATCH_SIZE = tiny.PATCH_SIZE, PATCH_SIZE
    try:
        model, processor = KINDS[kind].build()
    finally:
        tiny.PATCH_SIZE = usual
    return KINDS[kind].explainer(model.use_sdpa(), processor, DecodingSettings(**model.decoding))


def train(kind: str, steps: int, seed: int = 0) -> Explainer:
    """Train the model of `build`."""
    explainer = build(kind, seed)
    model, processor = explainer.model, explainer.processor
    scenes = make_scenes("train")[: min(TRAINED_SCENES, BATCH * steps)]
    pixels = torch.cat(
        [processor.image_processor(draw_scene(scene), return_tensors="pt").pixel_values.half() for scene in scenes]
    )
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=LEARNING_RATE)
    rng = random.Random(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP, 2 * (steps - step) / steps)
        rows = rng.choices(range(len(scenes)), k=BATCH)
        loss = KINDS[kind].loss(model, processor.tokenizer, pixels[rows].float(), [scenes[row] for row in rows], rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return explainer


def caption_loss(
    model: Any, tokenizer: Any, pixels: torch.Tensor, scenes: Sequence[Scene], rng: random.Random
) -> torch.Tensor:
    """The mean cross entropy of the first caption of each scene."""
    batch = tokenizer([describe_scene(scene)[0] for scene in scenes], padding=True, return_tensors="pt")
    batch.input_ids[:, 0] = model.config.text_config.bos_token_id
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORED)
    labels[:, 0] = IGNORED
    losses = model(
        pixel_values=pixels, input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
    ).token_losses
    return losses.sum() / (labels != IGNORED).sum()


def match_loss(
    model: Any, tokenizer: Any, pixels: torch.Tensor, scenes: Sequence[Scene], rng: random.Random
) -> torch.Tensor:
    """The cross entropy of ITM, for the caption of each scene and for the caption of a slightly different one."""
    texts = [describe_scene(each)[0] for scene in scenes for each in (scene, change_scene(scene, rng))]
    logits = model.match_logits(model.encode_images(pixels), **tokenize_texts(tokenizer, texts))
    targets = torch.tensor([MATCHING, 1 - MATCHING] * len(scenes))
    return F.cross_entropy(logits, targets)


def change_scene(scene: Scene, rng: random.Random) -> Scene:
    """The scene with another colour or form of one thing."""
    number = rng.randrange(len(scene.things))
    thing = scene.things[number]
    if rng.random() < 0.5:
        changed = thing._replace(colour=rng.choice([each for each in COLOURS if each != thing.colour]))
    else:
        changed = thing._replace(form=rng.choice([each for each in FORMS if each != thing.form]))
    return scene._replace(things=(*scene.things[:number], changed, *scene.things[number + 1 :]))


def answer_loss(
    model: Any, tokenizer: Any, pixels: torch.Tensor, scenes: Sequence[Scene], rng: random.Random
) -> torch.Tensor:
    """The mean cross entropy of the colour of one thing of each scene."""
    things = [rng.choice(scene.things) for scene in scenes]
    questions = [normalize_question(QUESTION.format(place=thing.place)) for thing in things]
    answers = encode_answers(tokenizer, [thing.colour for thing in things])
    labels = answers.clone()
    labels[:, 0] = IGNORED
    losses = model(
        pixel_values=pixels, **encode_questions(tokenizer, questions), decoder_input_ids=answers, labels=labels
    ).token_losses
    return losses.sum() / (labels != IGNORED).sum()


@dataclass(frozen=True)
class Kind:
    """How to build, train and explain a kind of model, and its usual number of training steps."""

    build: Callable[[], tuple[Any, Any]]
    loss: Callable[[Any, Any, torch.Tensor, Sequence[Scene], random.Random], torch.Tensor]
    explainer: type[Explainer]
    steps: int


KINDS = {
    "captioner": Kind(lambda: build_tiny_captioner(shapes_vocabulary()), caption_loss, CaptionExplainer, 800),
    "matcher": Kind(lambda: build_tiny_retriever(shapes_vocabulary()), match_loss, MatchExplainer, 2000),
    "answerer": Kind(lambda: build_tiny_answerer(questions_vocabulary()), answer_loss, AnswerExplainer, 2000),
}


def measure_layers(name: str, explainer: Explainer, count: int) -> list[dict[str, Any]]:
    """Measure each layer that has maps, a row for each kind of word."""
    layers = range(len(explainer.layers) - isinstance(explainer, MatchExplainer))
    return [row for layer in layers for row in measure(name, explainer, count, layer)]


def measure(name: str, explainer: Explainer, count: int, layer: int) -> list[dict[str, Any]]:
    """Look for each object of the first `count` test scenes in the maps of its words."""
    found: dict[str, list[tuple[float, float]]] = {}
    for scene in make_scenes("test")[:count]:
        for thing, word, weights in explain_things(explainer, scene, layer):
            found.setdefault(word, []).append((weight_in_box(weights, thing.box), area(thing.box)))
    return [summarize(name, explainer, layer, word, np.array(shares)) for word, shares in found.items()]


def explain_things(explainer: Explainer, scene: Scene, layer: int) -> Iterator[tuple[Thing, str, np.ndarray]]:
    """Each thing of a scene with a kind of text about it and the map `(rows, columns)` of this text."""
    picture = draw_scene(scene)
    if isinstance(explainer, AnswerExplainer):
        for thing in scene.things:
            question = QUESTION.format(place=thing.place)
            yield thing, "answer", explainer(picture, question, layer=layer, answer=thing.colour, over="answer").maps[0]
        return
    explanation = explainer(picture, describe_scene(scene)[0], layer=layer)
    words = list(explanation.words)
    for thing in scene.things:
        # No two things of a scene are alike, so the words "colour form" stand once in its caption.
        colour = next(n for n, word in enumerate(words) if words[n : n + 2] == [thing.colour, thing.form])
        yield thing, "phrase", explanation.select([f"{thing.colour} {thing.form}"]).maps[0]
        yield thing, "colour", explanation.maps[colour]
        yield thing, "form", explanation.maps[colour + 1]
        if isinstance(explainer, MatchExplainer):
            text = f"a {thing.colour} {thing.form}"
            yield thing, "text of its own", explainer(picture, text, layer=layer).select([text]).maps[0]


def summarize(name: str, explainer: Explainer, layer: int, word: str, shares: np.ndarray) -> dict[str, Any]:
    """A row of the table from `shares` `(objects, 2)`: of the weight inside the box, and of the area."""
    weight, size = shares.mean(0)
    vision = explainer.model.config.vision_config
    side = vision.image_size // vision.patch_size
    return {
        "model": name,
        "patches": f"{side} x {side}",
        "layer": layer,
        "default": layer == explainer.default_layer,
        "word": word,
        "objects": len(shares),
        "weight": round(float(weight), 3),
        "area": round(float(size), 3),
        "ratio": round(float(weight / size), 2),
        "found": round(float((shares[:, 0] >= 3 * shares[:, 1]).mean()), 3),
    }


def weight_in_box(weights: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """The share of the weights `(rows, columns)` inside a box; 0 if there are none."""
    left, top, right, bottom = box
    down, across = _overlaps(top, bottom, weights.shape[0]), _overlaps(left, right, weights.shape[1])
    whole = float(weights.sum())
    return float(down @ weights @ across) / whole if whole else 0.0


def _overlaps(start: float, end: float, patches: int) -> np.ndarray:
    """The share of each of the patches in a line that lies between two pixels."""
    edges = np.linspace(0, SIZE, patches + 1)
    return (np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)).clip(0) / (SIZE / patches)


def area(box: tuple[float, float, float, float]) -> float:
    """The share of the picture inside a box."""
    left, top, right, bottom = box
    return (right - left) * (bottom - top) / SIZE**2


if __name__ == "__main__":
    run_command(main)
