"""The page of `export --demo` in a real browser: its pixels, its policy, and with transformers.js its captions."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from browser import watch
from captioners import learn, save_captioner, write_recipe
from PIL import Image

from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.data.images import open_image
from blip_recipe.data.shapes import describe_scene, draw_scene, make_scenes
from blip_recipe.errors import RecipeError
from blip_recipe.export import main
from blip_recipe.exporting.demo import CDN, copy_library, write_demo
from blip_recipe.exporting.kinds import Source, describe, load_source
from blip_recipe.models.processors import save_processor
from blip_recipe.runtime.pixels import PixelSettings

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

PROMPT = "a picture of "


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder; remembers what was asked for."""

    asked: list[str]

    def log_message(self, format: str, *arguments: Any) -> None:
        self.asked.append(self.requestline)

    def do_POST(self) -> None:
        self.send_error(405)


@pytest.fixture
def serve() -> Iterator[Any]:
    """Serve a folder; returns its address and the list of what was asked for."""
    servers = []

    def start(folder: Path) -> tuple[str, list[str]]:
        handler = type("Handler", (Quiet,), {"asked": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/", handler.asked  # type: ignore[attr-defined]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return load_source(str(save_captioner(tmp_path_factory.mktemp("demo") / "model", prompt=PROMPT)))


def record_of(source: Source, **changes: Any) -> dict[str, Any]:
    return describe(source, ".onnx", "fp32", 20) | changes


def odd_pictures(folder: Path) -> list[Path]:
    """Drawn scenes of several sizes and formats, one of them turned by EXIF."""
    folder.mkdir()
    paths = []
    for number, scene in enumerate(make_scenes("test")[:8]):
        suffix = ("png", "jpg", "webp")[number % 3]
        picture = draw_scene(scene).resize((96 + 41 * number, 300 - 31 * number), Image.Resampling.BILINEAR)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 4 else 1
        options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        picture.save(folder / f"{number}.{suffix}", exif=exif, **options)
        paths.append(folder / f"{number}.{suffix}")
    return paths


READ = """async (content) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  return Array.from(await blip.readPixels(new Blob([bytes])));
}"""


def test_the_page_makes_the_runners_pixels_and_may_ask_no_other_server(
    source: Source, page: Page, serve: Any, tmp_path: Path
) -> None:
    (tmp_path / "web").mkdir()
    record = record_of(source)
    write_demo(source, tmp_path / "web", record)
    address, _ = serve(tmp_path / "web")
    elsewhere, asked = serve(tmp_path)
    page.route("https://**", lambda route: route.abort())  # the CDN
    page.goto(address)
    page.get_by_text("The model cannot be loaded").wait_for()
    assert page.locator("#files").is_disabled()
    own = PixelSettings(**record["image"])
    for path in odd_pictures(tmp_path / "pictures"):
        found = page.evaluate(READ, base64.b64encode(path.read_bytes()).decode())
        expected = own.read(open_image(path))
        assert np.array_equal(np.array(found, dtype=np.float32), expected.ravel()), path
    upload = f"fetch('{elsewhere}', {{method: 'POST', mode: 'no-cors', body: 'x'}}).then(() => 'sent', () => 'refused')"
    assert page.evaluate(upload) == "refused"
    assert asked == []


def test_a_missing_library_and_an_unknown_filter_are_told(source: Source, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--transformers_js takes a folder in which `npm install"):
        copy_library(tmp_path, tmp_path / "copy")
    record = record_of(source)
    record["image"]["resample"] = int(Image.Resampling.LANCZOS)
    with pytest.raises(RecipeError, match="resizes pictures with filter 1: the page knows 2 and 3"):
        write_demo(source, tmp_path, record)
    for arguments, message in (
        (["--demo"], "add --format transformers.js"),
        (["--format", "transformers.js", "--transformers_js", "x"], "--transformers_js has an effect only with --demo"),
    ):
        with pytest.raises(RecipeError, match=message):
            main(["model", str(tmp_path / "out"), *arguments])


def train_captioner(directory: Path, pictures: list[Path], captions: list[str], **recipe: Any) -> Path:
    """A tiny captioner that learnt the captions of eight pictures by heart, each after a prompt."""
    torch.manual_seed(0)
    model, processor = build_tiny_captioner([PROMPT, *captions])
    texts = processor.tokenizer([PROMPT + caption for caption in captions], padding=True, return_tensors="pt")
    ids = texts.input_ids
    ids[:, 0] = processor.tokenizer.bos_token_id
    pixels = processor.image_processor([open_image(path) for path in pictures], return_tensors="pt").pixel_values
    labels = ids.masked_fill(texts.attention_mask == 0, -100)
    learn(model, steps=120, pixel_values=pixels, input_ids=ids, attention_mask=texts.attention_mask, labels=labels)
    model.save_pretrained(directory)
    save_processor(processor, directory)
    write_recipe(directory, prompt=PROMPT, generation_max_length=40, generation_min_length=3, **recipe)
    return directory


@pytest.mark.long
def test_a_trained_captioner_writes_the_captions_of_torch_in_the_browser(
    page: Page, serve: Any, tmp_path: Path
) -> None:
    """Set NODE_PATH_OF_TRANSFORMERS to a folder in which `npm install @huggingface/transformers` ran."""
    library = Path(os.environ.get("NODE_PATH_OF_TRANSFORMERS", "/nowhere"))
    if not (library / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("no transformers.js: npm install @huggingface/transformers in a folder, and name it")
    pytest.importorskip("onnxscript")
    from blip_recipe import caption_pipeline

    pictures = odd_pictures(tmp_path / "pictures")
    captions = [describe_scene(scene)[0] for scene in make_scenes("test")[:8]]
    model = train_captioner(tmp_path / "model", pictures, captions, generation_num_beams=1)
    out = tmp_path / "web"
    main([str(model), str(out), "--format", "transformers.js", "--demo", "--transformers_js", str(library)])
    assert json.loads((out / "export.json").read_text())["check"]["greedy"] == 1.0
    address, asked = serve(out)
    done = watch(page)
    found = caption_in(page, address, [*pictures, Path(__file__)])
    assert found.pop().startswith("Cannot be read as a picture: ")
    expected = [each[0]["generated_text"] for each in caption_pipeline(model, device="cpu")(list(map(str, pictures)))]
    assert found == expected
    assert sum(a == b for a, b in zip(expected, captions, strict=True)) >= 7  # it is trained
    assert done.errors == []
    assert [url for url in done.requests if not url.startswith((address, "blob:"))] == []
    assert [line for line in asked if not line.startswith("GET ")] == []

    # The same with the library from its CDN, whose files are those of npm.
    write_demo(load_source(str(model)), out, json.loads((out / "export.json").read_text()))
    page.route(f"{CDN}/npm/**", lambda route: answer_as_cdn(route, library))
    assert caption_in(page, address, pictures) == expected
    assert done.errors == []
    assert {urlsplit(url).netloc for url in done.requests} == {urlsplit(address).netloc, urlsplit(CDN).netloc, ""}


def caption_in(page: Page, address: str, pictures: list[Path]) -> list[str]:
    """The captions of pictures on the page."""
    page.goto(address)
    page.get_by_text("Ready.").wait_for(timeout=60_000)
    page.locator("#files").set_input_files(pictures)
    page.locator("[data-done]").nth(len(pictures) - 1).wait_for(timeout=60_000)
    return page.locator(".caption").all_text_contents()[::-1]


def answer_as_cdn(route: Route, library: Path) -> None:
    """Answer with a file of an npm package: `/npm/PACKAGE@VERSION/FILE`."""
    path = re.sub("(?<=[^/])@[^/]+", "", urlsplit(route.request.url).path.removeprefix("/npm/"))
    types = {".wasm": "application/wasm"}
    file = library / "node_modules" / path
    headers = {"Access-Control-Allow-Origin": "*", "Content-Type": types.get(file.suffix, "text/javascript")}
    route.fulfill(body=file.read_bytes(), headers=headers)
