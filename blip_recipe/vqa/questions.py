"""Questions about the drawn scenes, each with the answers of ten annotators who do not all use the same words.

A scene of training is asked everything in both wordings, any other three questions of different kinds. The scenes of a
split are those of captioning, so that the questions of test are all about pairs of things that training never shows
together, and half of those of validation.
What is asked for cannot be read off one thing alone: a yes or no about a thing tells a red circle beside a blue square
from a blue circle beside a red square.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from blip_recipe.data.shapes import COLOURS, FORMS, KINDS, PLACES, SIZES, make_scenes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blip_recipe.data.shapes import Scene, Thing

QUESTIONS = 3
"""Asked about each scene that is not for training."""
ANNOTATORS = 10
AGREEING_ANNOTATORS = (7, 10)
"""At least and at most so many annotators use the usual word for the answer; the others use another one."""
MISTAKE_RATE = 0.03
"""How often an annotator of training scenes gives a wrong answer; those of the other splits never do."""

SYNONYMS = {
    "small": "little",
    "large": "big",
    "purple": "violet",
    "cyan": "turquoise",
    "cross": "plus",
    "0": "none",
    "1": "one",
    "2": "two",
    "yes": "yeah",
    "no": "nope",
    **{place: place.replace("top", "upper").replace("bottom", "lower") for place in PLACES},
}
"""Another word for an answer, for those that have one."""

WORDINGS = {
    "colour": ("What colour is the thing in the {place}?", "Which colour has the object in the {place}?"),
    "thing": ("What is in the {place}?", "Which thing does the {place} show?"),
    "size": ("How large is the {colour} {form}?", "What size is the {colour} {form}?"),
    "place": ("Where is the {colour} {form}?", "In which place is the {colour} {form}?"),
    "count": ("How many {colour} things are there?", "What is the number of {colour} objects?"),
    "yes or no": ("Is there a {colour} {form}?", "Does the picture show a {colour} {form}?"),
}
"""Two wordings of each kind of question."""


@dataclass(frozen=True)
class Question:
    """A question about a scene: its kind, its words, the right answer and what the annotators say."""

    kind: str
    text: str
    answer: str
    answers: tuple[str, ...]


def make_questions(scene: Scene, rng: random.Random, mistake_rate: float = 0.0) -> list[Question]:
    """Three questions of different kinds about `scene`.

    Args:
        scene: What is seen.
        rng: Chooses kinds, things, wordings and annotators.
        mistake_rate: How often an annotator gives a wrong answer.
    """
    kinds = rng.sample(list(WORDINGS), QUESTIONS)
    return [_make_question(kind, rng.choice(WORDINGS[kind]), scene, rng, mistake_rate) for kind in kinds]


def make_all_questions(scene: Scene, rng: random.Random, mistake_rate: float = 0.0) -> list[Question]:
    """A question of each kind in each wording about `scene`; the arguments are those of `make_questions`."""
    return [_make_question(kind, wording, scene, rng, mistake_rate) for kind in WORDINGS for wording in WORDINGS[kind]]


def _make_question(kind: str, wording: str, scene: Scene, rng: random.Random, mistake_rate: float) -> Question:
    thing = rng.choice(scene.things)
    words = {"colour": thing.colour, "form": thing.form, "place": thing.place}
    if kind == "count":
        words["colour"] = rng.choice([thing.colour, rng.choice(list(COLOURS))])
        answer = str(sum(each.colour == words["colour"] for each in scene.things))
    elif kind == "yes or no":
        words["colour"], words["form"] = _choose_colour_and_form(scene, thing, rng)
        there = any((each.colour, each.form) == (words["colour"], words["form"]) for each in scene.things)
        answer = "yes" if there else "no"
    else:
        whole = f"{thing.size} {thing.colour} {thing.form}"
        answer = {"colour": thing.colour, "thing": whole, "size": thing.size, "place": thing.place}[kind]
    return Question(kind, wording.format(**words), answer, _annotate(answer, possible_answers(kind), rng, mistake_rate))


def _choose_colour_and_form(scene: Scene, thing: Thing, rng: random.Random) -> tuple[str, str]:
    """Colour and form that are there in half of the cases, and else as alike to what is there as can be."""
    there = [(each.colour, each.form) for each in scene.things]
    if rng.random() < 0.5:
        return thing.colour, thing.form
    mixed = [kind for kind in product({kind[0] for kind in there}, {kind[1] for kind in there}) if kind not in there]
    like = [kind for kind in KINDS if kind not in there and (kind[0] == thing.colour) != (kind[1] == thing.form)]
    return rng.choice(sorted(mixed) or like)


def possible_answers(kind: str) -> list[str]:
    """The right answers that questions of `kind` can have."""
    return {
        "colour": list(COLOURS),
        "thing": [" ".join(parts) for parts in product(SIZES, COLOURS, FORMS)],
        "size": list(SIZES),
        "place": list(PLACES),
        "count": ["0", "1", "2"],
        "yes or no": ["yes", "no"],
    }[kind]


def synonym(answer: str) -> str:
    """`answer` in other words, or itself where there are none."""
    return SYNONYMS.get(answer) or " ".join(SYNONYMS.get(word, word) for word in answer.split())


def _annotate(answer: str, possible: list[str], rng: random.Random, mistake_rate: float) -> tuple[str, ...]:
    """What ten annotators say: most the usual word for `answer`, some another, a few a wrong one."""
    usual = rng.randint(*AGREEING_ANNOTATORS)
    answers = [answer] * usual + [synonym(answer)] * (ANNOTATORS - usual)
    wrong = [each for each in possible if each != answer]
    answers = [rng.choice(wrong) if rng.random() < mistake_rate else each for each in answers]
    rng.shuffle(answers)
    return tuple(answers)


def scene_questions(split: str) -> Iterator[tuple[Scene, list[Question]]]:
    """The scenes of a split, and what is asked about each; the same on every machine."""
    rng = random.Random(f"shapes questions {split}")
    for scene in make_scenes(split):
        yield scene, make_all_questions(scene, rng, MISTAKE_RATE) if split == "train" else make_questions(scene, rng)


def questions_vocabulary() -> list[str]:
    """Every word of every question and answer, and the question mark."""
    filled = (
        wording.format(colour=colour, form=form, place=place)
        for wordings in WORDINGS.values()
        for wording in wordings
        for colour, form, place in zip(COLOURS, FORMS * 2, PLACES * 2, strict=False)
    )
    answers = [answer for kind in WORDINGS for answer in possible_answers(kind)]
    texts = [*filled, *COLOURS, *FORMS, *answers, *SYNONYMS.values()]
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
