"""Pictures are opened upright and in RGB whatever they are stored as, and bad ones are named before training."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from blip_recipe.data import downloads, images
from blip_recipe.data.images import BadImageError, open_image

UNREADABLE = {"truncated.jpg", "header_only.jpg", "zero_byte.jpg", "text_named.jpg", "bomb_20000x20000.png"}


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def weird(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The odd and broken files by the names they should have."""
    folder = tmp_path_factory.mktemp("weird")
    files = {}
    for entry in json.loads((shared / "data/weird/manifest.json").read_text())["files"]:
        path = folder / entry["file_name"]
        path.write_bytes((shared / "data/weird" / entry.get("stored_as", entry["file_name"])).read_bytes())
        files[entry["file_name"]] = path
    return files


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_odd_file_opens_as_rgb_or_is_refused_by_name(weird: dict[str, Path]) -> None:
    assert len(weird) == 23
    for name, path in weird.items():
        if name in UNREADABLE:
            with pytest.raises(BadImageError, match=path.name):
                open_image(path)
        else:
            assert open_image(str(path)).mode == "RGB", name


def test_a_photograph_on_its_side_is_turned_upright(weird: dict[str, Path]) -> None:
    stored = Image.open(weird["exif_rotated.jpg"])
    upright = open_image(weird["exif_rotated.jpg"])
    assert upright.size == stored.size[::-1]
    expected = np.asarray(stored.convert("RGB").transpose(Image.Transpose.ROTATE_270))
    assert (np.asarray(upright) == expected).all()


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(weird: dict[str, Path]) -> None:
    grey8, grey16 = np.asarray(open_image(weird["grey.jpg"])), np.asarray(open_image(weird["grey16.png"]))
    assert (grey16 == 255).mean() < 0.5
    assert abs(float(grey8.mean()) - float(grey16.mean())) < 20


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_grey_values_mean_the_same_in_every_depth(values: list[int]) -> None:
    grey = np.array(values, dtype=np.uint8).reshape(2, 2)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    stored = {
        "8 bits": encode(Image.fromarray(grey), "PNG"),
        "16 bits": encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "16 bits, big-endian": encode(Image.fromarray(grey.astype(">u2") * 257), "TIFF"),
        "32 bits": encode(Image.fromarray(grey.astype(np.int32) * 257), "TIFF"),
        "float up to 1": encode(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
    }
    if max(values) > 1:
        stored["float up to 255"] = encode(Image.fromarray(grey.astype(np.float32)), "TIFF")
    for depth, content in stored.items():
        assert (np.asarray(open_image(content)) == expected).all(), depth


def test_grey_values_of_an_unknown_range_reach_from_black_to_white() -> None:
    values = np.array([[-7.5, 0.0], [2.5, np.nan]], dtype=np.float32)
    assert np.asarray(open_image(encode(Image.fromarray(values), "TIFF")))[:, :, 0].tolist() == [[0, 191], [255, 191]]
    flat = np.full((2, 2), -3.0, dtype=np.float32)
    assert np.asarray(open_image(encode(Image.fromarray(flat), "TIFF"))).max() == 0


@settings(deadline=None)
@given(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"]), st.integers(0, 2**32 - 1))
def test_ordinary_modes_are_what_pillow_and_transformers_make_of_them(mode: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("RGB") if mode in ("CMYK", "YCbCr") else Image.fromarray(pixels)
    picture = picture.convert(mode)
    opened = open_image(encode(picture, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert (np.asarray(opened) == np.asarray(picture.convert("RGB"))).all()


def test_all_kinds_of_sources_give_the_same_picture(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    content, path = encode(picture, "PNG"), tmp_path / "picture.png"
    path.write_bytes(content)
    sources: list[Any] = [
        content,
        path,
        str(path),
        {"bytes": content, "path": None},
        {"bytes": content, "path": "gone.png"},
        {"bytes": None, "path": str(path)},
        {"path": str(path)},
        picture,
        np.asarray(picture),
    ]
    for source in sources:
        assert (np.asarray(open_image(source)) == np.asarray(picture)).all()


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = encode(
            frames[0], kind, save_all=True, append_images=frames[1:], **({} if kind == "GIF" else {"lossless": True})
        )
        assert open_image(content).getpixel((0, 0)) == (255, 0, 0), kind


@pytest.mark.parametrize("picture", [None, {"bytes": None, "path": None}, b"", b"no picture", "nowhere/gone.jpg", {}])
def test_what_is_no_picture_is_refused(picture: Any) -> None:
    with pytest.raises(BadImageError, match=r"picture"):
        open_image(picture)


def test_a_missing_file_is_named_with_what_paths_start_at() -> None:
    with pytest.raises(BadImageError, match=r"nowhere/gone\.jpg .*image_root"):
        open_image("nowhere/gone.jpg")


class PictureServer(BaseHTTPRequestHandler):
    """`/picture.png`, `/sometimes` after one failure, `/huge`, `/slow`, and nothing else."""

    content = encode(Image.new("RGB", (3, 2), "blue"), "PNG")
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/sometimes" and self.asked.count(self.path) == 1:
            self.send_error(503)
            return
        if self.path not in ("/picture.png", "/sometimes", "/huge", "/slow", "/a%20b/%C3%A9.png?x=1"):
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        try:
            while self.path in ("/huge", "/slow"):
                self.wfile.write(bytes(2**20 if self.path == "/huge" else 1))
            self.wfile.write(self.content)
        except OSError:
            self.close_connection = True  # the client has had enough

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    PictureServer.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), PictureServer) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_a_url_is_fetched(server: str) -> None:
    assert open_image(f"{server}/picture.png").size == (3, 2)
    assert open_image(f"{server}/a b/é.png?x=1").size == (3, 2)


def test_a_server_that_falters_is_asked_again_and_one_that_refuses_is_not(server: str) -> None:
    assert open_image(f"{server}/sometimes").size == (3, 2)
    with pytest.raises(BadImageError, match=r"/missing\.jpg.*404"):
        open_image(f"{server}/missing.jpg")
    assert PictureServer.asked == ["/sometimes", "/sometimes", "/missing.jpg"]


def test_a_download_has_limits(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD", 2**20)
    with pytest.raises(BadImageError, match=r"/huge .*1 MiB"):
        open_image(f"{server}/huge")
    with pytest.raises(BadImageError, match=r"/slow .*0\.2 seconds"):
        open_image(f"{server}/slow", timeout=0.2)


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    """The first box of a file of ISO's base media format, and what could be its next one."""
    content = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return (len(content) + 4).to_bytes(4, "big") + content + b"\0\0\0\x10meta" + bytes(8)


@pytest.mark.skipif(images.HAS_HEIC, reason="pillow-heif is installed: HEIC pictures are read")
@pytest.mark.parametrize("head", [ftyp(b"heic", b"mif1", b"heic"), ftyp(b"mif1", b"mif1", b"heic"), ftyp(b"msf1")])
def test_a_heic_picture_without_its_package_is_named(tmp_path: Path, head: bytes) -> None:
    told = r"is a HEIC picture: install blip-recipe\[heic\]$"
    # Its content tells, not its extension.
    path = tmp_path / "IMG_0001.jpg"
    path.write_bytes(head)
    for picture in (path, str(path), {"bytes": head, "path": "IMG_0001.jpg"}):
        with pytest.raises(BadImageError, match=rf"IMG_0001\.jpg {told}"):
            open_image(picture)
        assert str(images.check_picture(picture)).endswith("IMG_0001.jpg is a HEIC picture: install blip-recipe[heic]")


def test_heic_pictures_are_read_with_their_package(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="pillow-heif (the extra `heic`) is not installed")
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    content = encode(picture, "HEIF", quality=90)
    opened = open_image(content)
    assert opened.size == (64, 48)
    assert np.abs(np.asarray(opened, dtype=int) - np.asarray(picture, dtype=int)).max() < 16
    with pytest.raises(BadImageError, match="cannot be read as a picture"):
        open_image(content[:40])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_pictures_are_read() -> None:
    assert open_image(encode(Image.new("RGB", (64, 48), (9, 99, 199)), "AVIF")).size == (64, 48)
    with pytest.raises(BadImageError, match="its format is unknown"):
        open_image(ftyp(b"avif", b"mif1"))


def test_avif_without_its_codec_and_other_media_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadImageError, match="its format is unknown"):
        open_image(ftyp(b"isom", b"mp42"))
    monkeypatch.setattr(features, "check", lambda name: False)
    assert (
        images.explain_format(io.BytesIO(ftyp(b"mif1", b"avif"))) == "is an AVIF picture: install pillow 11.3 or later"
    )


def test_an_empty_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    for picture in (tmp_path / "1.jpg", {"bytes": b"", "path": "tar/1.jpg"}):
        with pytest.raises(BadImageError, match=r"1\.jpg is empty: there is no picture$"):
            open_image(picture)
