"""Drawn scenes are true, the same everywhere, and keep what training must not show."""

from __future__ import annotations

import hashlib
import io
import random
import re

import numpy as np
import pytest
from PIL import Image

from blip_recipe.data import images
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.checks import check_splits
from blip_recipe.data.images import check_picture, open_image, read_content
from blip_recipe.data.load import load_split, vocabulary_texts
from blip_recipe.data.pixels import read_pixels
from blip_recipe.data.shapes import (
    COLOURS,
    FORMS,
    KINDS,
    PLACES,
    SHAPES_SPLITS,
    SHAPES_STYLES,
    SIZES,
    Scene,
    Style,
    Thing,
    describe_scene,
    draw_scene,
    make_scene,
    make_scenes,
    name_scene,
    shapes_vocabulary,
)
from blip_recipe.errors import RecipeError

WORDS = {"colour": COLOURS, "form": FORMS, "size": SIZES, "place": sorted(PLACES, key=len, reverse=True)}


def read_caption(caption: str) -> list[tuple[str, ...]]:
    """Colour, form, size and place of the things that a caption names, whatever its wording."""
    found = {kind: re.findall(rf"\b({'|'.join(words)})\b", caption) for kind, words in WORDS.items()}
    return list(zip(*found.values(), strict=True))


@pytest.mark.parametrize("style", SHAPES_STYLES)
def test_every_caption_says_all_there_is_in_other_words(style: Style) -> None:
    for scene in make_scenes("validation"):
        captions = describe_scene(scene, style)
        assert len(set(captions)) == 5
        for caption in captions:
            things = [(thing.colour, thing.form, thing.size, thing.place) for thing in scene.things]
            assert read_caption(caption) == things
            assert caption == caption.lower() == re.sub(r"[^a-z ]", "", caption)
            assert len(caption.split()) <= 26


def test_what_a_caption_says_can_be_seen() -> None:
    for scene in make_scenes("test")[:100]:
        pixels = np.asarray(draw_scene(scene)).astype(int)
        for thing in scene.things:
            colour = np.abs(pixels - COLOURS[thing.colour]).max(axis=2) < 3
            row, column = divmod(PLACES.index(thing.place), 2)
            edge = pixels.shape[0] / 2
            place = colour[
                round(row * edge) : round((row + 1) * edge), round(column * edge) : round((column + 1) * edge)
            ]
            columns = np.nonzero(place)[1]
            width = columns.max() - columns.min() + 1
            half = min(SIZES.values()) + max(SIZES.values())
            assert (width > half) == (thing.size == "large")


def test_held_out_pairs_never_occur_in_training() -> None:
    assert not any(scene.is_held_out for scene in make_scenes("train"))


def test_a_pair_is_held_out_whatever_its_order_sizes_and_places() -> None:
    scene = next(scene for scene in make_scenes("test") if len(scene.things) == 2)
    first, second = scene.things
    swapped = (
        Thing(*kind_of(second), "small", "top left", (0, 0)),
        Thing(*kind_of(first), "large", "bottom right", (1, 1)),
    )
    other = Scene(swapped, background=0)
    assert other.is_held_out


def kind_of(thing: Thing) -> tuple[str, str]:
    return thing.colour, thing.form


def test_test_is_all_held_out_and_validation_half() -> None:
    new = {split: [scene.is_held_out for scene in make_scenes(split)] for split in SHAPES_SPLITS}
    assert all(new["test"])
    assert sum(new["validation"]) == len(new["validation"]) / 2


def test_training_shows_every_word_and_each_part_of_what_is_held_out() -> None:
    things = [thing for scene in make_scenes("train") for thing in scene.things]
    assert {kind_of(thing) for thing in things} == set(KINDS)
    assert {thing.place for thing in things} == set(PLACES)
    assert {thing.size for thing in things} == set(SIZES)


def test_no_scene_occurs_twice() -> None:
    scenes = [scene for split in SHAPES_SPLITS for scene in make_scenes(split)]
    assert len(set(scenes)) == len(scenes) == sum(SHAPES_SPLITS.values())


def test_a_scene_follows_its_generator() -> None:
    assert make_scene(random.Random(7), held_out=True) == make_scene(random.Random(7), held_out=True)


@pytest.mark.parametrize("split", SHAPES_SPLITS)
def test_the_vocabulary_covers_both_styles(split: str) -> None:
    known = set(shapes_vocabulary())
    for style in SHAPES_STYLES:
        assert {
            word for scene in make_scenes(split) for text in describe_scene(scene, style) for word in text.split()
        } <= known


def test_the_data_set_is_rows_like_any_other() -> None:
    arguments = CaptionDataArguments(dataset_name="shapes")
    rows = load_split(arguments, "test")
    assert rows.column_names == ["image", "image_id", "captions"]
    assert list(rows["image_id"]) == list(range(SHAPES_SPLITS["test"]))
    scene: Scene = make_scenes("test")[5]
    assert rows[5]["captions"] == describe_scene(scene)
    assert open_image(rows[5]["image"]).tobytes() == draw_scene(scene).tobytes()
    assert set(shapes_vocabulary()) <= set(vocabulary_texts(rows, normalize=True, drawn=True))


def test_styles_are_configurations_and_splits_can_be_summed() -> None:
    rows = load_split(CaptionDataArguments(dataset_name="shapes", dataset_config_name="telegraph"), "validation+test")
    assert len(rows) == SHAPES_SPLITS["validation"] + SHAPES_SPLITS["test"]
    assert rows[0]["captions"] == describe_scene(make_scenes("validation")[0], "telegraph")


def test_the_first_rows_are_those_of_the_whole_split_and_are_drawn_when_read(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = CaptionDataArguments(dataset_name="shapes")
    whole = load_split(arguments, "validation+test")
    drawn: list[Scene] = []

    def draw_and_note(scene: Scene) -> Image.Image:
        drawn.append(scene)
        return draw_scene(scene)

    monkeypatch.setattr(images, "draw_scene", draw_and_note)
    first = load_split(arguments, "validation+test", max_samples=3)
    assert first.to_list() == whole.select(range(3)).to_list()
    checked = check_splits({"eval": first}, arguments)
    assert not drawn
    assert [open_image(row["image"]).tobytes() for row in checked.rows["eval"]] == [
        draw_scene(scene).tobytes() for scene in make_scenes("validation")[:3]
    ]
    assert tuple(drawn) == make_scenes("validation")[:3]


def test_a_scene_is_a_picture_as_its_file_would_be() -> None:
    scene = make_scenes("test")[5]
    image = {"bytes": None, "path": name_scene("test", 5)}
    assert Image.open(io.BytesIO(read_content(image))).tobytes() == draw_scene(scene).tobytes()
    assert read_pixels(image).equal(read_pixels(read_content(image)))
    assert check_picture(image) is None


@pytest.mark.parametrize("address", ["shapes:dev/0", "shapes:test/400", "shapes:test/-1", "shapes:test", "shapes:"])
def test_an_address_without_a_scene_is_a_picture_that_cannot_be_read(address: str) -> None:
    assert check_picture({"bytes": None, "path": address}) == (
        f"{address} cannot be read as a picture: there is no such drawn scene"
    )


def test_unknown_styles_and_splits_name_the_known() -> None:
    with pytest.raises(RecipeError, match=r"'loud'.*plain, telegraph"):
        load_split(CaptionDataArguments(dataset_name="shapes", dataset_config_name="loud"), "test")
    with pytest.raises(RecipeError, match=r"'dev'.*train, validation, test"):
        load_split(CaptionDataArguments(dataset_name="shapes"), "dev")


def test_scenes_are_the_same_on_every_machine() -> None:
    """The digest was made once; another one means that published scores no longer compare."""
    described = "\n".join(str(scene) for split in SHAPES_SPLITS for scene in make_scenes(split))
    assert hashlib.sha256(described.encode()).hexdigest()[:16] == DIGEST


DIGEST = "b76130c525883373"
