"""The runner reads pictures and texts as the processor of transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captioners import draw_pictures, save_captioner, save_translated
from PIL import Image
from transformers import BlipImageProcessor

from blip_recipe.data.images import BadImageError, open_image
from blip_recipe.data.shapes import draw_scene, make_scenes
from blip_recipe.models.processors import load_processor
from blip_recipe.models.text import decode_texts
from blip_recipe.runtime.pixels import PixelSettings
from blip_recipe.runtime.texts import Texts


def most_different(processor: BlipImageProcessor, path: Path) -> float:
    """The largest difference of the pixels of a picture from the processor's, in steps of 1/255."""
    std = tuple(processor.image_std)
    sides = (processor.size["height"], processor.size["width"])
    settings = PixelSettings(*sides, tuple(processor.image_mean), std, int(processor.resample))
    picture = open_image(path)
    expected = np.asarray(processor(picture, return_tensors="np").pixel_values[0])
    return float((np.abs(settings.read(picture)[0] - expected) * np.array(std)[:, None, None] * 255).max())


def test_drawn_pictures_give_the_processors_pixels(tmp_path: Path) -> None:
    for size in (96, 384):
        processor = BlipImageProcessor(size={"height": size, "width": size})
        for path in draw_pictures(tmp_path, 4, size=300):
            assert most_different(processor, path) == 0


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2000), (383, 385), (384, 100), (640, 480), (2, 29999)])
def test_noise_of_any_size_gives_the_processors_pixels(
    size: tuple[int, int], resample: Image.Resampling, tmp_path: Path
) -> None:
    """Pillow's own pixels differ by up to 23 steps where the size hardly changes."""
    values = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3)) * 255
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "noise.png")
    processor = BlipImageProcessor(size={"height": 384, "width": 384}, resample=resample)
    assert most_different(processor, tmp_path / "noise.png") == 0


def test_photographs_and_odd_files_give_the_processors_pixels(shared: Path) -> None:
    weird = shared / "data" / "weird"
    readable = sorted((shared / "data" / "photos").glob("*/*.jpg"))
    assert len(readable) == 86
    for each in json.loads((weird / "manifest.json").read_text())["files"]:
        path = weird / each.get("stored_as", each["file_name"])
        try:
            if open_image(path).width < 3000:
                readable.append(path)
        except BadImageError:
            continue
    assert len(readable) > 100
    processor = BlipImageProcessor(size={"height": 384, "width": 384})
    found = {path.name: most_different(processor, path) for path in readable}
    assert {name: difference for name, difference in found.items() if difference > 0} == {}


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_colour_that_is_marked_as_transparent_is_white_in_both(mode: str, tmp_path: Path) -> None:
    picture = draw_scene(make_scenes("test")[0]).convert(mode)
    colour: Any = picture.getpixel((0, 0))
    picture.save(tmp_path / "marked.png", transparency=colour)
    opened = open_image(tmp_path / "marked.png")
    assert "transparency" in opened.info
    processor = BlipImageProcessor(size={"height": 96, "width": 96})
    assert most_different(processor, tmp_path / "marked.png") == 0
    pixels = processor(opened, return_tensors="np", do_normalize=False).pixel_values[0]
    assert pixels[:, 0, 0] == pytest.approx(1.0)


TEXTS = [
    "a man's dog doesn't run, it's asleep",
    "they're here! aren't we? o'clock (two) ; a - b / c",
    "naïve café — 3.5 metres, 'quoted' \"double\"",
    "",
    "một hình tròn màu đỏ 左上角有红色的圆形",
    "[SEP] inside, and an unknowable wörd",
]


@pytest.mark.parametrize("save", [save_captioner, save_translated])
def test_texts_become_the_same_ids_and_come_back_the_same(save: object, tmp_path: Path) -> None:
    tokenizer = load_processor(str(save(tmp_path))).tokenizer  # type: ignore[operator]
    texts = Texts(tmp_path / "tokenizer.json", tokenizer.pad_token_id)
    for length in (6, 200):
        expected = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="np")
        ids, mask = texts.encode_all(TEXTS, length)
        assert ids.tolist() == expected.input_ids.tolist()
        assert mask.tolist() == expected.attention_mask.tolist()
    every = np.random.default_rng(0).integers(0, len(tokenizer), (200, 12))
    rows: Any = [*ids.tolist(), *every.tolist()]
    assert [texts.decode(row) for row in [*ids, *every]] == decode_texts(tokenizer, rows)
