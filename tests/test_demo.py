"""`blip-recipe demo` in a browser: captions, questions, matches, heat maps, two models, and bad pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import watch
from captioners import draw_pictures, save_captioner
from commands import PORTS, run_module, start_module, wait_for_server
from retrievers import TEXTS, build_retriever
from vqa_models import save_answerer

from blip_recipe import answer_pipeline, caption_pipeline
from blip_recipe.models.matching import Matcher
from blip_recipe.models.processors import save_processor

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("gradio", reason="gradio is not installed: pip install 'blip-recipe[demo]'")

expect = sync_api.expect

if TYPE_CHECKING:
    from playwright.sync_api import Page

HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module", name="place")
def fixture_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two captioners, an answerer, a matcher and pictures, good and bad."""
    place = tmp_path_factory.mktemp("demo")
    save_captioner(place / "first", prompt="a picture of ", generation_max_length=12)
    save_captioner(place / "second", seed=1, generation_max_length=12)
    save_answerer(place / "answerer")
    model, processor = build_retriever()
    model.save_pretrained(place / "matcher")
    save_processor(processor, place / "matcher")
    draw_pictures(place / "pictures", 3)
    (place / "pictures" / "<b>bad.png").write_bytes(b"no picture")
    return place


def serve(place: Path, *models: str) -> Iterator[str]:
    """Serve the page of the command; gives its address."""
    port, log = next(PORTS), place / f"{models[0]}.log"
    words = [models[0], *(("--compare", models[1]) if models[1:] else ())]
    temporary = {"TMPDIR": str(place / "temporary")}
    (place / "temporary").mkdir(exist_ok=True)
    command = ["blip_recipe.demo", *words, "--port", str(port), "--device", "cpu"]
    process = start_module(*command, cwd=place, log=log, env=temporary)
    try:
        wait_for_server(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(2)
        process.wait(30)
    # Pictures are deleted with the server.
    assert not list((place / "temporary").glob("blip_recipe_demo_*"))


@pytest.fixture(scope="module", name="captioners")
def fixture_captioners(place: Path) -> Iterator[str]:
    yield from serve(place, "first", "second")


@pytest.fixture(scope="module", name="others")
def fixture_others(place: Path) -> Iterator[str]:
    yield from serve(place, "answerer", "matcher")


def choose(page: Page, path: Path) -> None:
    """Choose a picture, and wait until it is there."""
    page.locator("#picture input[type=file]").first.set_input_files(path)
    page.locator("#picture img").wait_for()


def caption_of(place: Path, model: str, picture: Path, **options: object) -> list[str]:
    found = caption_pipeline(place / model, device="cpu", **options)(str(picture))
    return [each["generated_text"] for each in found]


def test_two_captioners_caption_a_picture_side_by_side_and_nothing_leaves_the_machine(
    page: Page, captioners: str, place: Path
) -> None:
    record = watch(page)
    picture = place / "pictures" / "0002.png"
    page.goto(captioners)
    expect(page.get_by_role("tab")).to_have_text(["Captions", "Where it looks"])
    choose(page, picture)
    page.locator("#caption").click()
    expect(page.locator(".result")).to_have_text(["Captions of first", "Captions of second"])
    boxes = page.locator(".result textarea")
    for number, name in enumerate(("first", "second")):
        (expected,) = caption_of(place, name, picture)
        expect(boxes.nth(number)).to_have_value(expected, timeout=20_000)
    # Several captions, of a prompt.
    page.locator("#prompt textarea, #prompt input").fill("two green")
    page.locator("#count input[type=number]").fill("3")
    page.locator("#caption").click()
    options = {"prompt": "two green ", "num_return_sequences": 3, "num_beams": 3}
    expected = "\n".join(caption_of(place, "first", picture, **options))
    expect(boxes.first).to_have_value(expected, timeout=20_000)
    page.get_by_role("tab", name="Where it looks").click()
    page.locator("#explain").click()
    page.locator('img[src*="/file="]').last.wait_for()
    assert all(url.startswith((captioners, "data:", "blob:")) for url in record.requests), record.requests
    assert not record.dialogs


def test_a_bad_picture_is_explained_in_the_page_and_its_name_stays_text(
    page: Page, captioners: str, place: Path
) -> None:
    record = watch(page)
    page.goto(captioners)
    page.locator("#caption").click()
    page.get_by_text("There is no picture: choose one first.").wait_for()
    page.locator("#picture input[type=file]").first.set_input_files(place / "pictures" / "<b>bad.png")
    page.locator("#picture img").wait_for(state="attached")
    page.locator("#caption").click()
    message = page.get_by_text("cannot be read as a picture")
    message.wait_for()
    assert message.inner_text() == "bbad.png cannot be read as a picture: its format is unknown"  # cleaned by Gradio
    assert not record.dialogs


def test_questions_matches_and_html_as_text(page: Page, others: str, place: Path) -> None:
    record = watch(page)
    picture = place / "pictures" / "0001.png"
    page.goto(others)
    expect(page.get_by_role("tab")).to_have_text(["Questions", "Matches", "Where it looks"])
    choose(page, picture)
    page.locator("#question textarea, #question input").fill("what is it")
    page.locator("#ask").click()
    answerer = answer_pipeline(place / "answerer", device="cpu")
    expected = answerer(image=str(picture), question="what is it")[0]["answer"]
    expect(page.locator(".result textarea")).to_have_value(expected, timeout=20_000)
    page.get_by_role("tab", name="Matches").click()
    texts = [*TEXTS[:2], HTML]
    page.locator("#texts textarea").fill("\n".join(texts))
    page.locator("#match").click()
    matcher = Matcher.load(str(place / "matcher"), device="cpu")
    (found,) = matcher.match([matcher.preprocess(str(picture))], [texts])
    best = sorted(zip(texts, found, strict=True), key=lambda each: -each[1])
    shown = [cell for text, value in best for cell in (text, str(round(value, 4)))]
    expect(page.locator('[data-testid^="cell-"]')).to_have_text(shown, timeout=20_000)
    assert not page.locator("td img").count()
    assert not record.dialogs


def test_other_models_are_refused_before_the_page(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    done = run_module("blip_recipe.demo", tmp_path)
    assert done.returncode == 2
    assert "a BertModel of type 'bert': expected a BLIP" in done.stderr
