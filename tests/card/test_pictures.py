"""The pictures of a card: of the promised size, with everything on them, whatever the captions and pictures are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blip_recipe.card.pictures import (
    COLUMN,
    GAP,
    MARGIN,
    WIDTH,
    Sample,
    choose_samples,
    draw_samples,
    draw_training_curves,
    load_samples,
)
from blip_recipe.card.text_layout import clean_text, split_units, wrap_text

RED, BLUE = (200, 30, 30), (30, 30, 200)


def prediction(image_id: int, cider: float) -> dict[str, Any]:
    return {"image_id": image_id, "caption": f"caption {image_id}", "references": ["r"], "scores": {"cider": cider}}


def sample(caption: str = "a red picture", size: tuple[int, int] = (120, 90), **changes: Any) -> Sample:
    arguments: dict[str, Any] = {
        "title": "best",
        "image": Image.new("RGB", size, RED),
        "caption": caption,
        "references": ["A picture that is red.", "red"],
        "score": "CIDEr 1.234",
    }
    return Sample(**arguments | changes)


def draw(samples: list[Sample], folder: Path) -> np.ndarray:
    """The picture as an array `(height, width, 4)`."""
    draw_samples(samples, folder / "samples.png")
    return np.asarray(Image.open(folder / "samples.png").convert("RGBA"))


def share(pixels: np.ndarray, colour: tuple[int, ...]) -> float:
    """The share of pixels of a colour."""
    return float((pixels[..., :3] == colour).all(-1).mean())


def ink(pixels: np.ndarray) -> int:
    """The number of dark pixels: text."""
    return int((pixels[..., :3].max(-1) < 80).sum())


def test_best_median_and_worst_are_chosen_by_cider() -> None:
    chosen = choose_samples([prediction(number, cider) for number, cider in enumerate([0.4, 2.0, 0.1, 1.0, 0.3])])
    assert {title: each["image_id"] for title, each in chosen.items()} == {"best": 1, "median": 0, "worst": 2}


@pytest.mark.parametrize(("count", "titles"), [(0, []), (1, ["best"]), (2, ["best", "worst"])])
def test_few_predictions_are_never_shown_twice(count: int, titles: list[str]) -> None:
    assert list(choose_samples([prediction(number, 0.0) for number in range(count)])) == titles


def test_captions_without_cider_are_ranked_by_another_score() -> None:
    predictions = [{**prediction(number, 0.0), "scores": {"rouge_l": number}} for number in range(3)]
    assert choose_samples(predictions)["best"]["image_id"] == 2
    unscored = [{**prediction(number, 0.0), "scores": {}} for number in range(3)]
    assert len(choose_samples(unscored)) == 3


def test_samples_come_with_the_pictures_of_their_images(tmp_path: Path) -> None:
    for image_id in (5, 6, 7):
        Image.new("RGB", (8, 8), (image_id, 0, 0)).save(tmp_path / f"{image_id}.png")
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"path": str(tmp_path / f"{image_id}.png"), "bytes": None} for image_id in (5, 6, 7)],
            "image_id": [5, 6, 7],
        }
    )
    loaded = load_samples([prediction(7, 0.25), prediction(5, 1.5), prediction(6, 0.5)], rows)
    assert [int(np.asarray(each.image)[0, 0, 0]) for each in loaded] == [5, 6, 7]
    assert [each.score for each in loaded] == ["CIDEr 1.500", "CIDEr 0.500", "CIDEr 0.250"]


def test_three_samples_fill_the_width_of_a_card(tmp_path: Path) -> None:
    pixels = draw([sample(title=title) for title in ("best", "median", "worst")], tmp_path)
    assert pixels.shape[1] == WIDTH == 2 * MARGIN + 3 * COLUMN + 2 * GAP
    assert 600 < pixels.shape[0] < 1200
    for left in (MARGIN, MARGIN + COLUMN + GAP, MARGIN + 2 * (COLUMN + GAP)):
        column = pixels[:, left : left + COLUMN]
        assert share(column, RED) > 0.4
        assert ink(column) > 1000


def test_the_panel_is_opaque_inside_and_transparent_at_its_corners(tmp_path: Path) -> None:
    pixels = draw([sample()], tmp_path)
    assert pixels[0, 0, 3] == pixels[-1, -1, 3] == 0
    assert (pixels[20:-20, 20:-20, 3] == 255).all()
    assert (pixels[20:40, 40:-40, :3] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (4, 4000), (4000, 4), (64, 64), (3000, 2000)])
def test_a_picture_of_any_shape_is_shown_whole(size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.new("RGB", size, RED)
    if max(size) > 1:  # the end of its longer side is blue
        image.paste(BLUE, (size[0] // 2, 0, *size) if size[0] > size[1] else (0, size[1] // 2, *size))
    pixels = draw([sample(image=image)], tmp_path)
    assert pixels.shape[1] == 2 * MARGIN + COLUMN
    assert share(pixels, RED) > 0
    assert max(size) == 1 or share(pixels, BLUE) > 0


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "costs $5 and $6_a^2 \\frac{1}{2}",
        "قطة سوداء تجلس على الطاولة",
        "一只黑猫坐在木桌上，旁边放着一杯咖啡。" * 20,
        "हिन्दी बिल्ली 🐱 👨‍👩‍👧",
        "half a pair \ud800, a bell \a and a\nnew\u2028line",
        "word " * 2000,
        "Donaudampfschifffahrtsgesellschaft" * 100,
        "\ue000\U000f0000\u0378",
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_captions_of_any_length_and_script_are_drawn_inside_their_column(caption: str, tmp_path: Path) -> None:
    pixels = draw([sample(caption, references=[caption] * 7), sample()], tmp_path)
    assert ink(pixels) > 500
    assert pixels.shape[0] < 1800
    between = pixels[MARGIN:-MARGIN, MARGIN + COLUMN + 10 : MARGIN + COLUMN + GAP - 4, :3]
    assert (between == 255).all()


def test_characters_that_no_font_has_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        draw([sample("unassigned \u0378")], tmp_path)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "1 characters" in messages[0]
    assert "\u0378" in messages[0]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw_samples([sample()], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_real_photographs_and_their_captions(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "photos" / "test"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()[:3]]
    samples = [
        sample(row["captions"][0], image=Image.open(folder / row["file_name"]), references=row["captions"])
        for row in rows
    ]
    assert len(np.unique(draw(samples, tmp_path)[..., :3].reshape(-1, 3), axis=0)) > 1000


LOG = [{"step": step, "loss": 4.0 / step} for step in range(1, 201)]
EVALUATIONS = [{"step": step, "eval_loss": 3.0 / step, "eval_cider": step / 200} for step in (50, 100, 150, 200)]
BLUE_LINE, ORANGE_LINE, GREEN_LINE = (9, 105, 218), (188, 76, 0), (26, 127, 55)


@pytest.mark.parametrize(
    ("log", "lines"),
    [
        (LOG + EVALUATIONS, {BLUE_LINE, ORANGE_LINE, GREEN_LINE}),
        (LOG, {BLUE_LINE}),
        (LOG[:1], {BLUE_LINE}),
        ([*EVALUATIONS[:1], {"step": 50, "train_loss": 2.0}], {BLUE_LINE, ORANGE_LINE, GREEN_LINE}),
        ([{"step": 1, "eval_cider": 0.0, "eval_loss": float("nan")}], {GREEN_LINE}),
        ([{"step": 1, "loss": float("inf")}, {"step": 2, "loss": 3.0}], {BLUE_LINE}),
        ([], set()),
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_curves_show_what_was_logged_and_nothing_else(
    log: list[dict[str, float]], lines: set[tuple[int, int, int]], tmp_path: Path
) -> None:
    draw_training_curves(log, tmp_path / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGBA"))
    assert pixels.shape == (640, WIDTH, 4)
    assert ink(pixels) > 100
    body = pixels[130:]  # below titles
    seen = {line for line in (BLUE_LINE, ORANGE_LINE, GREEN_LINE) if (body[..., :3] == line).all(-1).sum() > 20}
    # A curve of no finite point still has its entry in the legend.
    assert seen - {ORANGE_LINE} == lines - {ORANGE_LINE}
    assert lines <= seen


@given(st.text(), st.integers(1, 30), st.integers(1, 5))
def test_wrapped_lines_fit_and_hold_the_text_in_its_order(text: str, width: int, most: int) -> None:
    text = clean_text(text)
    lines = wrap_text(text, len, width, most)
    assert 1 <= len(lines) <= most
    whole, joined = text.replace(" ", ""), "".join(lines).replace(" ", "")
    assert joined == whole or (joined.endswith("…") and whole.startswith(joined[:-1]))
    # A character with its marks is never cut, however narrow the line.
    assert all(len(line) <= width or len(split_units(line)) == 1 for line in lines)


def test_chinese_is_broken_between_characters_but_not_before_a_full_stop() -> None:
    assert wrap_text("一只黑猫。", len, 4, 2) == ["一只黑", "猫。"]
    assert wrap_text("a black cat", len, 7, 2) == ["a black", "cat"]
