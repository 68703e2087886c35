"""CHAIR, the share of hallucinated objects (Rohrbach et al., 2018, https://arxiv.org/abs/1809.02156).

The rules are those of `utils/chair.py` of LisaAnne/Hallucination: objects are found by COCO's synonyms, and an object
is hallucinated if neither COCO's instances nor the references of the image have it. Two differences: captions are cut
into words by this package's tokenizer instead of NLTK's; and words are made singular by the plurals of the synonyms
instead of pattern's rules, which also cut words such as `bus` and `glass`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.scores import SCORE_NAMES, ImageId, ScoredSet, Values, match_ids, name_images
from blip_recipe.metrics.statistics import Numbers, Statistics

PAIRS = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "laptop computer", "home plate"),
)
"""Pairs of words that are one object, so that a hot dog is no dog."""

ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]

SINGLE_WORDS = {
    **{pair: pair for pair in PAIRS},
    **{f"{age} {animal}": animal for animal in ANIMALS for age in ("baby", "adult")},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
}
"""Pairs of words, and the word that each counts as. A baby or a passenger alone is a person."""

INSTANCES = 'COCO\'s instances, {"images": […], "annotations": [{"image_id", "category_id"}, …], "categories": […]}'
SYNONYMS = "a line for each object, its name first and its synonyms behind, with commas between"


class Chair:
    """Computes the metric `chair` of captions of COCO's images.

    - `chair_i`: hallucinated objects as a share of all mentioned objects, over the whole set. For an image: of those
      that its caption mentions.
    - `chair_s`: share of captions with a hallucinated object.

    Args:
        objects: The names of the objects in each image.
        synonyms: The words of each object, its own name first.

    Raises:
        RecipeError: An object has no synonyms, or the extra `chair` is not installed.
    """

    metrics = ("chair",)

    def __init__(self, objects: Mapping[ImageId, Iterable[str]], synonyms: Sequence[Sequence[str]]) -> None:
        self.names = {word: words[0] for words in synonyms for word in words}
        found = {name for each in objects.values() for name in each}
        if unknown := sorted(found - self.names.keys()):
            raise RecipeError(
                f"The instances have the object {unknown[0]!r:.50}, which no line of the synonyms names: expected a "
                "line for each category of COCO. Use the synonyms file of CHAIR's authors."
            )
        self.objects = {image_id: {self.names[name] for name in each} for image_id, each in objects.items()}
        self.singular = find_plurals({*self.names, *SINGLE_WORDS})

    @classmethod
    def read(cls, instances: Sequence[str | PathLike[str]], synonyms: str | PathLike[str]) -> Chair:
        """Read COCO's instances (`instances_val2014.json`, …) and the synonyms file of CHAIR's authors.

        Raises:
            RecipeError: A file cannot be read or has another format.
        """
        objects: dict[ImageId, set[str]] = {}
        for path in map(Path, instances):
            objects |= read_instances(path)
        return cls(objects, read_synonyms(Path(synonyms)))

    def score(self, metric: str, scored: ScoredSet) -> Values:
        """Count the hallucinated objects of each caption.

        Raises:
            RecipeError: An image is not among those of the instances.
        """
        known = match_ids(self.objects, dict.fromkeys(scored.image_ids))
        if missing := [image_id for image_id in scored.image_ids if image_id not in known]:
            raise RecipeError(
                f"chair_instances have no {name_images(missing)}: expected the instances of all scored images, under "
                "the ids of COCO (image_id_column)."
            )
        images = zip(scored.image_ids, scored.words, scored.reference_words, strict=True)
        counts = [self._count(caption, references, known[image_id]) for image_id, caption, references in images]
        per_image = {
            "chair_i": [bad / number if number else 0.0 for bad, number in counts],
            "chair_s": [float(bad > 0) for bad, _ in counts],
        }
        rows = np.asarray([(*each, float(each[0] > 0), 1.0) for each in counts])
        statistics = Statistics(SCORE_NAMES["chair"], rows, _shares)
        return Values(statistics.of_set(), per_image, (statistics,))

    def _count(self, caption: str, references: Sequence[str], objects: set[str]) -> tuple[int, int]:
        """The numbers of hallucinated and of all objects that a tokenized caption mentions."""
        there = objects.union(*(self.find_objects(reference) for reference in references))
        mentioned = self.find_objects(caption)
        return sum(name not in there for name in mentioned), len(mentioned)

    def find_objects(self, caption: str) -> list[str]:
        """The names of the objects that a tokenized caption mentions, in order."""
        words = [self.singular.get(word, word) for word in caption.split()]
        found: list[str] = []
        while words:
            pair = " ".join(words[:2])
            found.append(SINGLE_WORDS.get(pair, words[0]))
            words = words[2 if pair in SINGLE_WORDS else 1 :]
        if "toilet" in found:
            found = [word for word in found if word != "seat"]
        return [self.names[word] for word in found if word in self.names]


def _shares(sums: Numbers) -> Numbers:
    """The shares of hallucinated objects among mentioned ones, 0 where none is mentioned, and of captions with some."""
    return sums[..., 0::2] / np.maximum(sums[..., 1::2], 1)


def find_plurals(words: Iterable[str]) -> dict[str, str]:
    """The singular of each plural of `words` and of their parts.

    Raises:
        RecipeError: The extra `chair` is not installed.
    """
    try:
        import inflect
    except ImportError as error:
        raise RecipeError("The metric 'chair' needs the plurals of words: install blip-recipe[chair].") from error
    engines = inflect.engine(), inflect.engine()
    engines[1].classical(persons=True)  # persons beside people
    singulars = {part for word in words for part in (word, *word.split()) if " " not in part}
    plurals = {engine.plural_noun(word): word for word in sorted(singulars) for engine in engines}  # type: ignore[arg-type]
    return {plural: word for plural, word in plurals.items() if plural not in singulars}


def read_instances(path: Path) -> dict[ImageId, set[str]]:
    """Read the names of the objects in each image from COCO's instances.

    Raises:
        RecipeError: The file cannot be read or has another format.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        names = {each["id"]: each["name"] for each in content["categories"]}
        found: defaultdict[ImageId, set[str]] = defaultdict(set, {image["id"]: set() for image in content["images"]})
        for each in content["annotations"]:
            found[each["image_id"]].add(names[each["category_id"]])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"{path} cannot be read as instances ({error!r}): expected {INSTANCES}.") from error
    return dict(found)


def read_synonyms(path: Path) -> list[list[str]]:
    """Read the words of each object.

    Raises:
        RecipeError: The file cannot be read, or has no words.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as synonyms ({error!r}): expected {SYNONYMS}.") from error
    synonyms = [words for line in lines if (words := [word for each in line.split(",") if (word := each.strip())])]
    if not synonyms:
        raise RecipeError(f"{path} is empty: expected {SYNONYMS}.")
    return synonyms
