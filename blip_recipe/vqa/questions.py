"""Generate questions about the drawn scenes, with answers of ten simulated annotators.

A training scene gets questions of all kinds in both wordings; any other scene gets three questions of different kinds.
Scenes and splits are those of captioning: all test scenes, and half of the validation scenes, show combinations of
things that the training split never shows. Yes-or-no questions need colour and form together: they tell a red circle
and a blue square from a blue circle and a red square.
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
"""Number of questions about each scene of validation and test."""
ANNOTATORS = 10
AGREEING_ANNOTATORS = (7, 10)
"""Minimum and maximum number of annotators who use the main word for the answer; the others use a synonym."""
MISTAKE_RATE = 0.03
"""Probability that an annotator gives a wrong answer in the training split; 0 in the other splits."""

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
"""Synonyms of answers."""

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
    """A question about a scene: its kind, its text, the right answer and the annotators' answers."""

    kind: str
    text: str
    answer: str
    answers: tuple[str, ...]


def make_questions(scene: Scene, rng: random.Random, mistake_rate: float = 0.0) -> list[Question]:
    """Make three questions of different kinds about `scene`.

    Args:
        scene: The scene.
        rng: Random generator of kinds, things, wordings and answers.
        mistake_rate: Probability that an annotator gives a wrong answer.
    """
    kinds = rng.sample(list(WORDINGS), QUESTIONS)
    return [_make_question(kind, rng.choice(WORDINGS[kind]), scene, rng, mistake_rate) for kind in kinds]


def make_all_questions(scene: Scene, rng: random.Random, mistake_rate: float = 0.0) -> list[Question]:
    """Make a question of each kind in each wording about `scene`; arguments as in `make_questions`."""
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
    """Choose colour and form of a thing in the scene (half of the cases) or of a similar thing that is not in it."""
    there = [(each.colour, each.form) for each in scene.things]
    if rng.random() < 0.5:
        return thing.colour, thing.form
    mixed = [kind for kind in product({kind[0] for kind in there}, {kind[1] for kind in there}) if kind not in there]
    like = [kind for kind in KINDS if kind not in there and (kind[0] == thing.colour) != (kind[1] == thing.form)]
    return rng.choice(sorted(mixed) or like)


def possible_answers(kind: str) -> list[str]:
    """All right answers to questions of `kind`."""
    return {
        "colour": list(COLOURS),
        "thing": [" ".join(parts) for parts in product(SIZES, COLOURS, FORMS)],
        "size": list(SIZES),
        "place": list(PLACES),
        "count": ["0", "1", "2"],
        "yes or no": ["yes", "no"],
    }[kind]


def synonym(answer: str) -> str:
    """A synonym of `answer`, or `answer` itself if there is none."""
    return SYNONYMS.get(answer) or " ".join(SYNONYMS.get(word, word) for word in answer.split())


def _annotate(answer: str, possible: list[str], rng: random.Random, mistake_rate: float) -> tuple[str, ...]:
    """The answers of ten annotators: most give `answer`, some a synonym, a few a wrong answer."""
    usual = rng.randint(*AGREEING_ANNOTATORS)
    answers = [answer] * usual + [synonym(answer)] * (ANNOTATORS - usual)
    wrong = [each for each in possible if each != answer]
    answers = [rng.choice(wrong) if rng.random() < mistake_rate else each for each in answers]
    rng.shuffle(answers)
    return tuple(answers)


def scene_questions(split: str) -> Iterator[tuple[Scene, list[Question]]]:
    """Yield the scenes of a split with their questions; deterministic on every machine."""
    rng = random.Random(f"shapes questions {split}")
    for scene in make_scenes(split):
        yield scene, make_all_questions(scene, rng, MISTAKE_RATE) if split == "train" else make_questions(scene, rng)


def questions_vocabulary() -> list[str]:
    """All words of all questions and answers, and the question mark."""
    filled = (
        wording.format(colour=colour, form=form, place=place)
        for wordings in WORDINGS.values()
        for wording in wordings
        for colour, form, place in zip(COLOURS, FORMS * 2, PLACES * 2, strict=False)
    )
    answers = [answer for kind in WORDINGS for answer in possible_answers(kind)]
    texts = [*filled, *COLOURS, *FORMS, *answers, *SYNONYMS.values()]
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
