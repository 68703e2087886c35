"""The training augmentation is the original's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from blip_recipe.data.augmentation import OPERATIONS, apply_operation, augment, draw_crop

GREY = (128, 128, 128)


def photograph(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(20, 200, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class Positive(np.random.Generator):
    """A generator that always draws the positive direction."""

    number = 0.0

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
        return self.number


class Negative(Positive):
    """A generator that always draws the negative direction."""

    number = 0.9


POSITIVE, NEGATIVE = Positive(np.random.PCG64(0)), Negative(np.random.PCG64(0))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_a_crop_lies_inside_and_keeps_half_the_area_where_the_shape_allows(width: int, height: int, seed: int) -> None:
    left, upper, right, lower = draw_crop(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    if min(width, height) >= 100 and 3 / 4 <= width / height <= 4 / 3:
        assert 0.48 <= (right - left) * (lower - upper) / (width * height) <= 1
        assert 0.73 <= (right - left) / (lower - upper) <= 1.36


def test_crops_reach_all_areas_ratios_and_places() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([draw_crop(400, 400, rng) for _ in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = widths * heights / 160_000, widths / heights
    assert areas.min() < 0.52
    assert areas.max() > 0.95
    assert ratios.min() < 0.77
    assert ratios.max() > 1.3
    assert abs(np.log(ratios).mean()) < 0.02
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2:].max() == 400


def test_a_sliver_is_cropped_in_the_middle() -> None:
    assert draw_crop(1000, 30, np.random.default_rng(0)) == (480, 0, 520, 30)


def test_an_augmented_picture_is_square_and_follows_the_generator() -> None:
    first, again, other = (augment(photograph(), 24, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.size == (24, 24)
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("operation", ["Identity", "Brightness", "Sharpness"])
def test_level_five_leaves_brightness_and_sharpness_as_they_are(operation: str) -> None:
    assert apply_operation(photograph(), operation, POSITIVE).tobytes() == photograph().tobytes()


def test_contrast_and_histogram_are_pillows() -> None:
    expected = {"AutoContrast": ImageOps.autocontrast(photograph()), "Equalize": ImageOps.equalize(photograph())}
    for operation, picture in expected.items():
        assert apply_operation(photograph(), operation, POSITIVE).tobytes() == picture.tobytes()


def test_a_picture_moves_five_pixels_and_leaves_grey() -> None:
    original = np.asarray(photograph())
    for operation, axis in {"TranslateX": 1, "TranslateY": 0}.items():
        for side in (POSITIVE, NEGATIVE):
            moved = np.asarray(apply_operation(photograph(), operation, side))
            step = -5 if side is POSITIVE else 5
            expected = np.roll(original, step, axis)
            edge = [slice(None), slice(None)]
            edge[axis] = slice(-5, None) if step < 0 else slice(0, 5)
            expected[tuple(edge)] = GREY
            assert (moved == expected).all(), (operation, step)


def test_shears_and_rotations_are_by_the_original_angles() -> None:
    bar = Image.new("RGB", (101, 101), "black")
    bar.paste("white", (50, 0, 51, 101))
    sheared = np.asarray(apply_operation(bar, "ShearX", NEGATIVE))[:, :, 0].astype(int)
    # A column at x = 50 leans by 0.15 pixels a row, away from the top row.
    assert [abs(int(sheared[row, :].argmax()) - (50 + 0.15 * row)) < 1.5 for row in (0, 50, 100)] == [True] * 3
    turned = np.asarray(apply_operation(bar, "Rotate", POSITIVE))[:, :, 0].astype(int)
    top, bottom = (int(np.where(turned[row] == 255, 0, turned[row])[20:80].argmax()) + 20 for row in (5, 95))
    assert np.degrees(np.arctan((bottom - top) / 90)) == pytest.approx(15, abs=2)
    for operation in ("ShearX", "ShearY", "Rotate"):
        corners = np.asarray(apply_operation(Image.new("RGB", (100, 100)), operation, POSITIVE))
        assert (corners == 128).all(2).any()


def test_two_operations_are_drawn_and_each_is_applied_half_the_time() -> None:
    class Counting(np.random.Generator):
        """Counts the operations that are drawn."""

        def choice(self, options: object, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            drawn = super().choice(options, *args, **kwargs)  # type: ignore[call-overload]
            counts.extend(drawn)
            return drawn

    counts: list[str] = []
    rng, flat = Counting(np.random.PCG64(0)), Image.new("RGB", (32, 32), (10, 10, 10))
    changed = [augment(flat, 32, rng).tobytes() != flat.tobytes() for _ in range(1500)]
    assert len(counts) == 3000
    assert all(abs(counts.count(name) / 3000 - 0.1) < 0.03 for name in OPERATIONS)
    # Five of ten operations (shears, shifts, rotation) show on a flat picture; two draws, each applied half the time.
    assert abs(np.mean(changed) - (1 - 0.75**2)) < 0.05
