"""The runner reads pictures and texts as the processor of transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captioners import draw_pictures, save_captioner, save_translated
from transformers import BlipImageProcessor

from blip_recipe.data.images import BadImageError, open_image
from blip_recipe.models.processors import load_processor
from blip_recipe.models.text import decode_texts
from blip_recipe.runtime.pixels import PixelSettings
from blip_recipe.runtime.texts import Texts


def differences(processor: BlipImageProcessor, path: Path) -> np.ndarray:
    """The differences of the pixels of a picture from the processor's, in steps of 1/255."""
    std = tuple(processor.image_std)
    settings = PixelSettings(processor.size["height"], processor.size["width"], tuple(processor.image_mean), std)
    picture = open_image(path)
    expected = np.asarray(processor(picture, return_tensors="np").pixel_values[0])
    return np.abs(settings.read(picture)[0] - expected) * np.array(std)[:, None, None] * 255


def test_pixels_are_the_processors_within_one_step(tmp_path: Path) -> None:
    for size in (96, 384):
        processor = BlipImageProcessor(size={"height": size, "width": size})
        for path in draw_pictures(tmp_path, 4, size=300):
            assert differences(processor, path).max() < 1.01


def test_photographs_and_odd_pictures_too(shared: Path) -> None:
    """Torchvision rounds its weights to 16 bits, so a few values differ by two or three steps."""
    weird = shared / "data" / "weird"
    readable = sorted((shared / "data" / "photos" / "test").glob("*.jpg"))[:6]
    for each in json.loads((weird / "manifest.json").read_text())["files"]:
        path = weird / each.get("stored_as", each["file_name"])
        try:
            if open_image(path).width < 3000:
                readable.append(path)
        except BadImageError:
            continue
    assert len(readable) > 15
    processor = BlipImageProcessor(size={"height": 384, "width": 384})
    for path in readable:
        found = differences(processor, path)
        assert (found > 1.01).mean() < 1e-4, path
        assert found.max() < 3.01, path


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
