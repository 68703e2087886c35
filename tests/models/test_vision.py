"""The image encoder encodes a batch in parts that fit the cache of a CPU."""

from __future__ import annotations

import pytest
import torch
from captioners import CAPTIONS

from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.models import vision
from blip_recipe.models.vision import encode_images


class CountedEncoder(torch.nn.Module):
    """The image encoder of a tiny captioner, which notes how many images it gets at a time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = build_tiny_captioner(CAPTIONS)[0].eval().vision_model
        self.config = self.encoder.config
        self.counts: list[int] = []

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> object:
        self.counts.append(len(pixel_values))
        return self.encoder(pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)


def bytes_an_image(size: int) -> int:
    """What the widest activations of a picture of `size` x `size` pixels take."""
    config = CountedEncoder().config
    return ((size // config.patch_size) ** 2 + 1) * config.intermediate_size * 4


@pytest.mark.parametrize(("size", "interpolates"), [(96, False), (128, True)])
def test_a_batch_is_encoded_in_parts(monkeypatch: pytest.MonkeyPatch, size: int, interpolates: bool) -> None:
    encoder, pixels = CountedEncoder(), torch.randn(5, 3, size, size)
    with torch.no_grad():
        whole = encode_images(encoder, pixels, interpolate_pos_encoding=interpolates)
        monkeypatch.setattr(vision, "CACHE_BYTES", 2 * bytes_an_image(size) + 1)
        in_parts = encode_images(encoder, pixels, interpolate_pos_encoding=interpolates)
        monkeypatch.setattr(vision, "CACHE_BYTES", 1)
        encode_images(encoder, pixels[:2], interpolate_pos_encoding=interpolates)
    assert encoder.counts == [5, 2, 2, 1, 1, 1]
    assert whole.shape == (5, (size // encoder.config.patch_size) ** 2 + 1, encoder.config.hidden_size)
    torch.testing.assert_close(in_parts, whole)


def test_gradients_are_those_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "CACHE_BYTES", 1)
    encoder = CountedEncoder()
    assert encode_images(encoder, torch.randn(3, 3, 96, 96)).requires_grad
    assert encoder.counts == [3]


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="There are no pixel_values: expected"):
        encode_images(CountedEncoder(), None)
