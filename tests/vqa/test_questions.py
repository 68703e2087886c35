"""Questions about drawn scenes are true, the same everywhere, and tell what stands together."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from itertools import islice

import pytest

from blip_recipe.data.shapes import COLOURS, FORMS, PLACES, SHAPES_SPLITS, Scene, Thing, make_scenes
from blip_recipe.vqa.metrics import is_exact_match, vqa_accuracy
from blip_recipe.vqa.questions import (
    AGREEING_ANNOTATORS,
    ANNOTATORS,
    QUESTIONS,
    WORDINGS,
    Question,
    make_questions,
    possible_answers,
    questions_vocabulary,
    scene_questions,
    synonym,
)

MANY = 500
"""Scenes of a split that are looked at, where not all of them are."""


def find(words: object, text: str) -> str:
    """The longest of `words` in `text`, or nothing."""
    return max((word for word in words if re.search(rf"\b{word}\b", text)), key=len, default="")  # type: ignore[attr-defined]


def look(scene: Scene, question: Question) -> str:
    """The answer, read off the scene by the words of the question alone."""
    colour, form, place = (find(words, question.text) for words in (COLOURS, FORMS, PLACES))
    things = [
        thing
        for thing in scene.things
        if colour in ("", thing.colour) and form in ("", thing.form) and place in ("", thing.place)
    ]
    if question.kind == "yes or no":
        return "yes" if things else "no"
    if question.kind == "count":
        return str(len(things))
    (thing,) = things
    return {
        "colour": thing.colour,
        "thing": f"{thing.size} {thing.colour} {thing.form}",
        "size": thing.size,
        "place": thing.place,
    }[question.kind]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_answer_can_be_seen(split: str) -> None:
    for scene, questions in scene_questions(split):
        assert len({question.kind for question in questions} & set(WORDINGS)) == len(questions) == QUESTIONS
        for question in questions:
            assert question.answer == look(scene, question)
            assert question.answer in possible_answers(question.kind)


def test_scenes_of_training_are_asked_everything_in_every_wording() -> None:
    for scene, questions in islice(scene_questions("train"), MANY):
        assert [question.kind for question in questions] == [kind for kind in WORDINGS for _ in WORDINGS[kind]]
        assert len({question.text for question in questions}) == 12
        assert all(question.answer == look(scene, question) for question in questions)


def test_questions_are_about_the_scenes_of_captioning() -> None:
    for split in SHAPES_SPLITS:
        assert tuple(scene for scene, _ in islice(scene_questions(split), MANY)) == make_scenes(split)[:MANY]
    assert all(scene.is_held_out for scene, _ in scene_questions("test"))
    assert not any(scene.is_held_out for scene, _ in islice(scene_questions("train"), MANY))


def test_no_answer_is_right_without_a_look() -> None:
    """Whoever gives the most frequent answer to each kind of question is far from 0.9."""
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in WORDINGS}
    for _, questions in scene_questions("test"):
        for question in questions:
            answers[question.kind][question.answer] += 1
    blind = sum(counts.most_common(1)[0][1] for counts in answers.values()) / sum(map(Counter.total, answers.values()))
    assert blind < 0.45
    assert 0.4 < answers["yes or no"]["yes"] / answers["yes or no"].total() < 0.6


def test_a_no_asks_for_what_two_things_would_make_together() -> None:
    scene = Scene(
        (Thing("red", "circle", "small", PLACES[0], (0, 0)), Thing("blue", "square", "large", PLACES[1], (0, 0))), 0
    )
    asked = [question for seed in range(60) for question in make_questions(scene, random.Random(seed))]
    texts = [question for question in asked if question.kind == "yes or no"]
    denied = {(find(COLOURS, each.text), find(FORMS, each.text)) for each in texts if each.answer == "no"}
    assert denied == {("red", "square"), ("blue", "circle")}


@pytest.mark.parametrize("split", SHAPES_SPLITS)
def test_annotators_agree_on_the_right_answer_in_several_words(split: str) -> None:
    spread = mistaken = total = 0
    for _, questions in islice(scene_questions(split), MANY):
        for question in questions:
            total += 1
            assert len(question.answers) == ANNOTATORS
            right = {question.answer, synonym(question.answer)}
            mistaken += not set(question.answers) <= right
            spread += len(set(question.answers)) > 1
            if split != "train":
                assert question.answers.count(question.answer) >= AGREEING_ANNOTATORS[0]
                assert vqa_accuracy(question.answer, question.answers) == 1
                assert is_exact_match(question.answer, question.answers) == 1
    assert spread > total / 3
    assert (mistaken > total / 5) if split == "train" else (mistaken == 0)


def test_a_wrong_answer_is_worth_nothing_in_test() -> None:
    for _, questions in scene_questions("test"):
        for question in questions:
            wrong = [each for each in possible_answers(question.kind) if each != question.answer]
            assert all(vqa_accuracy(each, question.answers) == 0 for each in wrong)


def test_the_vocabulary_covers_every_question_and_answer() -> None:
    known = set(questions_vocabulary())
    for split in SHAPES_SPLITS:
        for _, questions in islice(scene_questions(split), MANY):
            for question in questions:
                for text in (question.text, *question.answers):
                    assert set(re.findall(r"\w+|[^\w\s]", text.lower())) <= known


def test_questions_are_the_same_on_every_machine() -> None:
    """The digest was made once; another one means that published scores no longer compare."""
    asked = "\n".join(
        str(question)
        for split in SHAPES_SPLITS
        for _, each in islice(scene_questions(split), MANY)
        for question in each
    )
    assert hashlib.sha256(asked.encode()).hexdigest()[:16] == DIGEST


DIGEST = "0b63394f230e424a"
