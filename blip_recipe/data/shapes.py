"""The embedded data set: drawn scenes with five captions each, and held-out combinations for validation and test.

A scene has one to `MAX_OBJECTS` objects on a dark background. Each object has a colour, a form, a size and one of four
places. Some pairs of objects (`is_held_out`) appear together only in validation and test, to measure generalisation
instead of memorised scenes. The constants below set the difficulty.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import product
from typing import Literal, NamedTuple, get_args

from PIL import Image, ImageDraw

Style = Literal["plain", "telegraph"]
SHAPES_STYLES: tuple[Style, ...] = get_args(Style)

SHAPES_SPLITS = {"train": 16000, "validation": 200, "test": 400}
"""Number of scenes in each split."""

ADDRESS = "shapes:"
"""Beginning of the addresses of scenes."""

SIZE = 96
"""Side of a picture in pixels."""
SUPERSAMPLING = 2
"""Factor by which scenes are drawn larger and then shrunk, for smooth edges."""
CELL = SIZE / 2
"""Side in pixels of the four places."""

MAX_OBJECTS = 2
OBJECTS_WEIGHTS = (1, 3)
"""Relative frequency of scenes with one object, two objects, ..."""
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 200, 40),
    "blue": (50, 70, 240),
    "yellow": (240, 220, 40),
    "purple": (200, 50, 220),
    "cyan": (50, 220, 220),
}
FORMS = ("circle", "square", "triangle", "cross")
SIZES = {"small": 10.0, "large": 18.0}
"""Half an object's width in pixels."""
MAX_SHIFT = 4
"""Maximum distance in pixels of an object from the middle of its place."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
"""In reading order."""
KINDS = tuple(product(COLOURS, FORMS))
"""Combinations of colour and form."""
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
HELD_OUT_SHARE = 5
"""One in this many pairs of kinds is held out."""
BACKGROUNDS = (0, 40)
"""Range of the background's grey value."""

SENTENCES: dict[Style, tuple[tuple[str, str, str], ...]] = {
    # Beginning of the caption, template of an object, separator of objects.
    "plain": (
        ("", "a {size} {colour} {form} in the {place}", " and "),
        ("there is ", "a {size} {colour} {form} in the {place}", " and "),
        ("", "in the {place} is a {size} {colour} {form}", " and "),
        ("the picture shows ", "a {size} {colour} {form} in the {place}", " next to "),
        ("i see ", "a {size} {colour} {form} in the {place}", " with "),
    ),
    "telegraph": (
        ("", "{form} {colour} {size} {place}", " stop "),
        ("", "{place} {size} {colour} {form}", " stop "),
        ("seen ", "{size} {form} {colour} {place}", " also "),
        ("report ", "{place} {form} {colour} {size}", " also "),
        ("object ", "{colour} {form} {size} {place}", " then "),
    ),
}
"""Five caption templates for each style. Each one describes the scene completely."""


class Thing(NamedTuple):
    """An object of a scene. `shift` is its offset in pixels from the middle of its place."""

    colour: str
    form: str
    size: str
    place: str
    shift: tuple[int, int]

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle `(x, y)` in pixels."""
        row, column = divmod(PLACES.index(self.place), 2)
        return (column + 0.5) * CELL + self.shift[0], (row + 0.5) * CELL + self.shift[1]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The smallest box around it, `(left, top, right, bottom)` in pixels."""
        (x, y), radius = self.centre, SIZES[self.size]
        return x - radius, y - radius, x + radius, y + radius


class Scene(NamedTuple):
    """Things in reading order, and the grey value of the background."""

    things: tuple[Thing, ...]
    background: int

    @property
    def is_held_out(self) -> bool:
        """Whether the scene has a held-out pair of kinds. A fifth of all pairs is held out of training."""
        first, *others = sorted([NUMBERS[thing.colour, thing.form] for thing in self.things])
        return any((7 * first + 3 * other) % HELD_OUT_SHARE == 0 for other in others)


def make_scene(rng: random.Random, held_out: bool) -> Scene:
    """Make a random scene, with a held-out pair of things or without."""
    while True:
        count = rng.choices(range(1, MAX_OBJECTS + 1), weights=OBJECTS_WEIGHTS)[0]
        places = sorted(rng.sample(PLACES, count), key=PLACES.index)
        kinds = rng.sample(KINDS, len(places))
        things = tuple(_make_thing(rng, *kind, place) for kind, place in zip(kinds, places, strict=True))
        scene = Scene(things, background=rng.randint(*BACKGROUNDS))
        if scene.is_held_out == held_out:
            return scene


def _make_thing(rng: random.Random, colour: str, form: str, place: str) -> Thing:
    size = rng.choice(list(SIZES))
    room = min(MAX_SHIFT, int(CELL / 2 - SIZES[size]))
    return Thing(colour, form, size, place, (rng.randint(-room, room), rng.randint(-room, room)))


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB picture of `SIZE` x `SIZE` pixels."""
    side = SIZE * SUPERSAMPLING
    image = Image.new("RGB", (side, side), (scene.background,) * 3)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        x, y = (SUPERSAMPLING * middle for middle in thing.centre)
        _draw_form(canvas, thing.form, x, y, SIZES[thing.size] * SUPERSAMPLING, COLOURS[thing.colour])
    return image.reduce(SUPERSAMPLING)


def _draw_form(
    canvas: ImageDraw.ImageDraw, form: str, x: float, y: float, radius: float, colour: tuple[int, int, int]
) -> None:
    """Draw a form with half-width `radius` and center `(x, y)`."""
    box = (x - radius, y - radius, x + radius, y + radius)
    if form == "circle":
        canvas.ellipse(box, colour)
    elif form == "square":
        canvas.rectangle(box, colour)
    elif form == "triangle":
        canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], colour)
    else:
        arm = radius / 3
        canvas.rectangle((x - arm, y - radius, x + arm, y + radius), colour)
        canvas.rectangle((x - radius, y - arm, x + radius, y + arm), colour)


def describe_scene(scene: Scene, style: Style = "plain") -> list[str]:
    """Describe a scene in five captions, in lower case and without punctuation."""
    return [
        opening + between.join([_describe_thing(wording, *thing[:4]) for thing in scene.things])
        for opening, wording, between in SENTENCES[style]
    ]


@cache
def _describe_thing(wording: str, colour: str, form: str, size: str, place: str) -> str:
    return wording.format(colour=colour, form=form, size=size, place=place)


def shapes_vocabulary() -> list[str]:
    """All words of all styles, so one tokenizer fits every style."""
    scenes = [
        Scene((Thing(colour, form, size, place, (0, 0)),) * 2, 0)
        for colour, form, size, place in product(COLOURS, FORMS, SIZES, PLACES)
    ]
    captions = (caption for style in SHAPES_STYLES for scene in scenes for caption in describe_scene(scene, style))
    return sorted({word for caption in captions for word in caption.split()})


@lru_cache
def make_scenes(split: str) -> tuple[Scene, ...]:
    """Make the scenes of a split. All scenes of all splits differ.

    No training scene has a held-out pair, every second validation scene has one, and every test scene has one.
    """
    taken = set[Scene]() if split == "train" else {scene for other in _before(split) for scene in make_scenes(other)}
    rng = random.Random(f"shapes {split}")
    scenes: list[Scene] = []
    while len(scenes) < SHAPES_SPLITS[split]:
        scene = make_scene(rng, held_out=split == "test" or (split == "validation" and len(scenes) % 2 == 1))
        if scene not in taken:
            taken.add(scene)
            scenes.append(scene)
    return tuple(scenes)


def _before(split: str) -> Iterator[str]:
    """The splits listed before `split`."""
    for other in SHAPES_SPLITS:
        if other == split:
            return
        yield other


def name_scene(split: str, number: int) -> str:
    """The address of a scene, which stands in a row instead of a file: scenes are drawn when they are read."""
    return f"{ADDRESS}{split}/{number}"


def find_scene(address: str) -> Scene:
    """The scene with an address of `name_scene`.

    Raises:
        ValueError: There is no such scene.
    """
    split, _, number = address.removeprefix(ADDRESS).partition("/")
    if split not in SHAPES_SPLITS or not number.isdecimal() or int(number) >= SHAPES_SPLITS[split]:
        raise ValueError("there is no such drawn scene")
    return make_scenes(split)[int(number)]


def encode_picture(image: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
