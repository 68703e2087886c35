"""The training augmentation is the original's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from blip_recipe.data.augmentation import OPERATIONS, apply_operation, augment, draw_crop

GREY = 128


def photograph(width: int = 40, height: int = 30) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(20, 200, (3, height, width), dtype=np.uint8))


def as_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


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
    assert (first.shape, first.dtype) == ((3, 24, 24), torch.uint8)
    assert first.equal(again)
    assert not first.equal(other)


def test_a_crop_is_resized_and_mirrored_as_pillow_does() -> None:
    ramp = torch.arange(100).mul(2).to(torch.uint8).expand(3, 80, 100).contiguous()
    boxes = {seed: draw_crop(100, 80, np.random.default_rng(seed)) for seed in range(12)}
    mirrored = 0
    for seed, box in boxes.items():
        # Only geometry shows: rows are alike, and neither operation is applied.
        augmented = augment(ramp, 48, Undecided(np.random.PCG64(seed)))
        expected = as_image(ramp).crop(box).resize((48, 48), Image.Resampling.BICUBIC)
        difference = np.asarray(expected).astype(int) - np.asarray(as_image(augmented))
        flipped = np.asarray(ImageOps.mirror(expected)).astype(int) - np.asarray(as_image(augmented))
        mirrored += abs(flipped).max() <= 1
        assert min(abs(difference).max(), abs(flipped).max()) <= 1
    assert mirrored == 12


class Undecided(np.random.Generator):
    """Mirrors every picture and applies no operation."""

    asked = 0

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
        self.asked += 1
        return 0.0 if self.asked == 1 else 1.0


def test_level_five_leaves_brightness_and_sharpness_as_they_are() -> None:
    enhancement = 5 / 10 * 1.8 + 0.1
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Sharpness):
        picture = as_image(photograph())
        assert enhance(picture).enhance(enhancement).tobytes() == picture.tobytes()
    for operation in ("Identity", "Brightness", "Sharpness"):
        assert apply_operation(photograph(), operation, POSITIVE).equal(photograph())


def test_contrast_and_histogram_are_pillows() -> None:
    picture = as_image(photograph())
    expected = {"AutoContrast": ImageOps.autocontrast(picture), "Equalize": ImageOps.equalize(picture)}
    for operation, image in expected.items():
        assert as_image(apply_operation(photograph(), operation, POSITIVE)).tobytes() == image.tobytes()


def test_a_picture_moves_five_pixels_and_leaves_grey() -> None:
    original = photograph().numpy()
    for operation, axis in {"TranslateX": 2, "TranslateY": 1}.items():
        for side in (POSITIVE, NEGATIVE):
            moved = apply_operation(photograph(), operation, side)
            step = -5 if side is POSITIVE else 5
            expected = np.roll(original, step, axis)
            edge = [slice(None)] * 3
            edge[axis] = slice(-5, None) if step < 0 else slice(0, 5)
            expected[tuple(edge)] = GREY
            assert (moved.numpy() == expected).all(), (operation, step)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_a_picture_that_moves_out_of_sight_is_grey(size: int) -> None:
    moved = apply_operation(photograph(size, size), "TranslateX", POSITIVE)
    assert (moved == GREY).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("operation", ["ShearX", "ShearY", "Rotate"])
def test_shears_and_rotations_are_pillows_by_the_original_angles(operation: str, sign: int) -> None:
    picture, grey = as_image(photograph(101, 80)), (GREY, GREY, GREY)
    shear = sign * 0.15
    expected = {
        "ShearX": lambda: warp(picture, (1, shear, 0, 0, 1, 0)),
        "ShearY": lambda: warp(picture, (1, 0, 0, shear, 1, 0)),
        "Rotate": lambda: picture.rotate(sign * 15, Image.Resampling.BILINEAR, fillcolor=grey),
    }[operation]()
    warped = as_image(apply_operation(photograph(101, 80), operation, POSITIVE if sign == 1 else NEGATIVE))
    # Pillow rounds down.
    difference = np.asarray(warped).astype(int) - np.asarray(expected)
    assert ((difference >= 0) & (difference <= 1)).mean() > 0.999
    assert (np.asarray(warped) == GREY).all(2).mean() > 0.03


def warp(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(GREY, GREY, GREY)
    )


def test_two_operations_are_drawn_and_each_is_applied_half_the_time() -> None:
    class Counting(np.random.Generator):
        """Counts the operations that are drawn."""

        def choice(self, options: object, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            drawn = super().choice(options, *args, **kwargs)  # type: ignore[call-overload]
            counts.extend(drawn)
            return drawn

    counts: list[str] = []
    rng, flat = Counting(np.random.PCG64(0)), torch.full((3, 32, 32), 10, dtype=torch.uint8)
    changed = [not augment(flat, 32, rng).equal(flat) for _ in range(1500)]
    assert len(counts) == 3000
    assert all(abs(counts.count(name) / 3000 - 0.1) < 0.03 for name in OPERATIONS)
    # Five of ten operations (shears, shifts, rotation) show on a flat picture; two draws, each applied half the time.
    assert abs(np.mean(changed) - (1 - 0.75**2)) < 0.05
