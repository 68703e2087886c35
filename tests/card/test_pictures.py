"""The pictures of a card: samples of every shape, small and without metadata, and curves of all that was logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from blip_recipe.card.pictures import (
    SAMPLE_FILES,
    SAMPLE_SIZE,
    WIDTH,
    choose_samples,
    draw_training_curves,
    write_samples,
)
from blip_recipe.card.thumbnails import encode_jpeg

RED, BLUE = (200, 30, 30), (30, 30, 200)


def prediction(image_id: int, cider: float) -> dict[str, Any]:
    return {"image_id": image_id, "caption": f"caption {image_id}", "references": ["r"], "scores": {"cider": cider}}


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


def write(predictions: list[dict[str, Any]], images: dict[int, Path], output_dir: Path) -> dict[str, bytes]:
    """What `write_samples` leaves in `samples/`, of a split with the files of `images` by `image_id`."""
    rows = datasets.Dataset.from_dict(
        {"image": [{"path": str(path), "bytes": None} for path in images.values()], "image_id": list(images)}
    )
    write_samples(predictions, rows, output_dir)
    return {path.name: path.read_bytes() for path in (output_dir / "samples").iterdir()}


def encode(image: Image.Image, path: Path) -> Image.Image:
    path.write_bytes(encode_jpeg(image, SAMPLE_SIZE, quality=90))
    return Image.open(path)


def test_samples_are_the_pictures_of_their_predictions(tmp_path: Path) -> None:
    images = {number: tmp_path / f"{number}.png" for number in (5, 6, 7)}
    for number, path in images.items():
        Image.new("RGB", (8, 8), (number * 30, 0, 0)).save(path)
    predictions = [prediction(7, 0.25), prediction(5, 1.5), prediction(6, 0.5)]
    files = write(predictions, images, tmp_path)
    assert set(files) == {"best.jpg", "median.jpg", "worst.jpg"}
    for number, name in zip(images, SAMPLE_FILES.values(), strict=True):
        picture = Image.open(tmp_path / name)
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
        assert picture.getpixel((4, 4)) == pytest.approx((number * 30, 0, 0), abs=4)
    assert write(predictions, images, tmp_path) == files


def test_a_real_photograph_stays_itself(shared: Path, tmp_path: Path) -> None:
    photo = Image.open(shared / "data" / "photos" / "test" / "000000058636.jpg").convert("RGB")
    picture = encode(photo, tmp_path / "small.jpg")
    assert max(picture.size) == SAMPLE_SIZE
    difference = np.asarray(picture, dtype=float) - np.asarray(photo.resize(picture.size))
    assert abs(difference).mean() < 5


def test_pictures_of_an_earlier_run_are_deleted_and_no_others(tmp_path: Path) -> None:
    image = tmp_path / "red.png"
    Image.new("RGB", (8, 8), RED).save(image)
    (tmp_path / "samples").mkdir()
    for name in (*SAMPLE_FILES.values(), "samples/mine.jpg"):
        (tmp_path / name).write_bytes(b"old")
    files = write([prediction(1, 2.0), prediction(2, 1.0)], {1: image, 2: image}, tmp_path)
    assert set(files) == {"best.jpg", "worst.jpg", "mine.jpg"}
    assert [name for name, content in files.items() if content == b"old"] == ["mine.jpg"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (1, 1)),
        ((4, 4000), (1, 384)),
        ((4000, 400), (384, 38)),
        ((64, 48), (64, 48)),
        ((3000, 2000), (384, 256)),
    ],
)
def test_a_picture_of_any_shape_is_shown_whole_and_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, size[1] // 2, *size))
    picture = encode(image, tmp_path / "small.jpg")
    assert picture.size == expected
    assert image.size == size
    if min(expected) > 1:
        for place, colour in (((0, 0), RED), ((expected[0] - 1, expected[1] - 1), BLUE)):
            assert picture.getpixel(place) == pytest.approx(colour, abs=12)


def test_a_sample_tells_nothing_but_its_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker of the camera"
    image = Image.new("RGB", (8, 8), RED)
    image.save(tmp_path / "photo.jpg", comment=b"taken at home", exif=exif, icc_profile=b"profile", dpi=(300, 300))
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert {"comment", "exif", "icc_profile", "dpi"} <= photo.info.keys()
        picture = encode(photo, tmp_path / "small.jpg")
    assert not {"comment", "exif", "icc_profile", "dpi", "xmp"} & picture.info.keys()


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
