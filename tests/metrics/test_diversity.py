"""Diversity and hallucinated objects, on examples that are counted by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from blip_recipe import Chair, Diversity, score_captions
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.chair import read_instances, read_synonyms

CAPTIONS: dict[Any, str] = {1: "A dog runs.", 2: "a dog runs", 3: "two cats", 4: ""}
REFERENCES: dict[Any, list[str]] = {number: ["a reference"] for number in CAPTIONS}


def test_diversity_is_counted_over_all_captions() -> None:
    scores = score_captions(CAPTIONS, REFERENCES, ["diversity"])
    assert scores.corpus == {
        "distinct_1": 5 / 8,  # a dog runs two cats, of 8 words
        "distinct_2": 3 / 5,  # "a dog", "dog runs", "two cats", of 5 pairs
        "vocabulary": 5.0,
        "unique": 3 / 4,  # the first two differ in case and punctuation only
        "caption_length": 2.0,
    }
    assert scores.per_image == {number: {} for number in CAPTIONS}


def test_novel_captions_are_not_among_those_of_training() -> None:
    scorer = Diversity(["Two cats!", "a dog", "something else"])
    scores = score_captions(CAPTIONS, REFERENCES, ["diversity"], scorers=[scorer])
    assert scores.corpus["novel"] == 3 / 4
    again = score_captions({1: "a dog"}, {1: ["a"]}, ["diversity"], scorers=[scorer])
    assert (again.corpus["novel"], again.corpus["distinct_2"]) == (0.0, 1.0)


SYNONYMS = """\
person, girl, boy, man, woman, people, child, baby, passenger
dog, puppy
cat, kitten
hot dog
bus
tie
traffic light, traffic signal
wine glass
chair, seat, stool
toilet
skis, ski
knife
"""
CATEGORIES = [line.split(", ")[0] for line in SYNONYMS.splitlines()]
IN_IMAGES = {1: ["dog"], 2: ["bus", "person"], 3: [], 4: ["toilet"], 5: ["wine glass"], 6: []}

CAPTIONED: dict[Any, str] = {
    1: "two puppies and a hot dog",  # dog; hot dog, which is no dog: hallucinated
    2: "people wait for buses at the traffic lights",  # person, bus; traffic light: hallucinated
    3: "a baby elephant and a passenger train",  # neither is a person; no object
    4: "a toilet with a toilet seat and a seat in a bow tie",  # toilet twice; no chair; tie: in a reference
    5: "wine glasses, knives and skis, and a cat cat",  # wine glass; knife, skis and cat twice: 4 hallucinated
    6: "men with kittens",  # both in references
}
MENTIONED = {1: (1, 2), 2: (1, 3), 3: (0, 0), 4: (0, 3), 5: (4, 5), 6: (0, 2)}
"""Hallucinated and mentioned objects of each caption, counted by hand."""
SAID: dict[Any, list[str]] = {number: ["a photo"] for number in CAPTIONED} | {
    4: ["A man's ties."],
    6: ["A woman.", "Cats!"],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Instances in two files, and synonyms."""
    categories = [{"id": 10 + number, "name": name} for number, name in enumerate(CATEGORIES)]
    paths = []
    for name, part in (("train", [1, 2, 3]), ("val", [4, 5, 6])):
        annotations = [
            {"image_id": number, "category_id": 10 + CATEGORIES.index(each)}
            for number in part
            for each in IN_IMAGES[number] * 2  # an object may be there twice
        ]
        paths.append(tmp_path / f"instances_{name}.json")
        images = [{"id": number} for number in part]
        paths[-1].write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    synonyms = tmp_path / "synonyms.txt"
    synonyms.write_text(SYNONYMS)
    return {"instances": paths, "synonyms": synonyms}


def test_chair_counts_objects_that_neither_instances_nor_references_have(files: dict[str, Any]) -> None:
    scores = score_captions(CAPTIONED, SAID, ["chair"], scorers=[Chair.read(**files)])
    for number, (wrong, mentioned) in MENTIONED.items():
        assert scores.per_image[number] == {"chair_i": wrong / max(1, mentioned), "chair_s": float(wrong > 0)}, number
    assert scores.corpus == {"chair_i": 6 / 15, "chair_s": 3 / 6}
    low, high = scores.intervals["chair_i"]
    assert 0 <= low < 6 / 15 < high < 1


def test_without_the_extra_chair_says_what_to_install(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inflect", None)
    with pytest.raises(RecipeError, match=r"install blip-recipe\[chair\]"):
        Chair.read(**files)


def test_chair_needs_the_instances_of_all_images(files: dict[str, Any]) -> None:
    scorer = Chair.read(files["instances"][1:], files["synonyms"])
    with pytest.raises(RecipeError, match=r"chair_instances have no 3 images \(1, 2, 3\): expected"):
        score_captions(CAPTIONED, SAID, ["chair"], scorers=[scorer])
    as_text: dict[Any, str] = {f"{number:012}": caption for number, caption in CAPTIONED.items()}
    known: dict[Any, list[str]] = {f"{number:012}": texts for number, texts in SAID.items()}
    scores = score_captions(as_text, known, ["chair"], scorers=[Chair.read(**files)])
    assert scores.corpus["chair_i"] == 6 / 15


@pytest.mark.parametrize(
    "content", ["", "[]", '{"images": []}', '{"images": [], "annotations": [7], "categories": []}']
)
def test_other_instances_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=r"instances.json cannot be read as instances .*: expected COCO's"):
        read_instances(path)


def test_other_synonyms_are_refused(files: dict[str, Any], tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n,\n")
    with pytest.raises(RecipeError, match=r"empty.txt is empty: expected a line for each object"):
        read_synonyms(empty)
    with pytest.raises(RecipeError, match=r"nowhere.txt cannot be read as synonyms"):
        read_synonyms(tmp_path / "nowhere.txt")
    short = tmp_path / "short.txt"
    short.write_text("dog, puppy\n")
    with pytest.raises(RecipeError, match="have the object 'bus', which no line of the synonyms names"):
        Chair.read(files["instances"], short)
