"""The report in a real browser: search, sort, filters, colours, keys, foreign texts as text, and 5,000 rows."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import watch
from PIL import Image

from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.card.facts import ScoreFacts
from blip_recipe.card.report import REPORT_FOLDER, ReportFacts, files_of, write_report
from blip_recipe.card.thumbnails import INLINE, make_thumbnails
from blip_recipe.retrieval.trainer import RetrievalTrainer
from blip_recipe.vqa.trainer import VqaTrainer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from blip_recipe.training.publishing import PublishingTrainer

Records = Sequence[dict[str, Any]]

FACTS = ReportFacts(
    "BLIP captions: pets",
    [("base model", "tiny"), ("split", "test")],
    [ScoreFacts("cider", "CIDEr", 1.25, 0.5, (1.125, 1.375)), ScoreFacts("loss", "Loss", 2.0, None)],
    [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0, "eval_loss": 2.5, "eval_cider": 0.4}],
)


def caption(image_id: Any, text: str, cider: float, references: list[str], **more: Any) -> dict[str, Any]:
    scores = {"cider": cider, "bleu_1": cider / 4}
    return {"image_id": image_id, "caption": text, "references": references, "scores": scores, **more}


OURS = [
    caption(1, "a dog runs", 1.5, ["a dog runs fast", "the dog is running"], group="indoor"),
    caption(2, "a cat", 3.0, ["a cat sleeps", "sleepy cat"], group="outdoor"),
    caption(3, "two birds on a wire", 0.5, ["birds", "two birds sit"], group="outdoor"),
    caption(4, "a red bus in the street", 2.0, ["a bus", "Bus on a zebra crossing"], group="indoor"),
]
BASE = [
    caption(1, "a dog runs", 1.5, OURS[0]["references"], group="indoor"),
    caption(2, "a cow", 0.5, OURS[1]["references"], group="outdoor"),
    caption(3, "a bird", 1.0, OURS[2]["references"], group="outdoor"),
    caption(4, "a truck", 0.25, OURS[3]["references"], group="indoor"),
]


def picture(colour: str = "red", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG", **options)
    return file.getvalue()


def write(
    folder: Path,
    ours: Records = OURS,
    base: Records | None = BASE,
    trainer: type[PublishingTrainer] = CaptionTrainer,
    find_picture: Callable[[Any], Any] | None = lambda _: picture(),
    **options: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if base is not None:
        lines = "".join(json.dumps(each) + "\n" for each in base)
        (folder / "baseline_predictions.jsonl").write_text(lines, encoding="utf-8")
    how: dict[str, Any] = {"to_display": trainer.to_display, "find_picture": find_picture, **options}
    return write_report(folder, ours, trainer.task, FACTS, **how)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """One page for the tests of the same report: a new profile for each takes most of their time."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    context.set_default_timeout(5000)
    yield context.new_page()
    context.close()


@pytest.fixture
def opened(tab: Page, report: Path) -> Page:
    """The report, as when it is opened for the first time."""
    tab.goto(report.as_uri())
    tab.evaluate("localStorage.clear()")
    tab.reload()
    return tab


def ids(page: Page) -> list[int]:
    """The ids of the rows, from top to bottom."""
    found = page.locator(".row").evaluate_all(
        "rows => rows.map(row => [parseFloat(row.style.top), row.querySelector('.meta bdi').textContent])"
    )
    return [int(name.removeprefix("#")) for _, name in sorted(found)]


# Search, sort and filters


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dog", [1]),  # a caption
        ("COW", [2]),  # a caption of the base model
        ("zebra", [4]),  # a reference
        ("sit two", [3]),  # both words, in any order
        ("outdoor", [2, 3]),  # a group
        ("", [1, 2, 3, 4]),
        ("nothing like it", []),
    ],
)
def test_search_finds_rows_by_captions_references_and_groups(opened: Page, words: str, expected: list[int]) -> None:
    opened.get_by_label("Search").fill(words)
    assert ids(opened) == expected
    assert opened.locator("#nothing").is_visible() == (not expected)
    assert opened.locator("#count").inner_text() == ("4 images" if len(expected) == 4 else f"{len(expected)} of 4")


@pytest.mark.parametrize(
    ("by", "first", "reversed_"),
    [
        ("score", [2, 4, 1, 3], [3, 1, 4, 2]),
        ("change against the base", [2, 4, 1, 3], [3, 1, 4, 2]),  # 2.5, 1.75, 0 and -0.5
        ("length", [2, 1, 3, 4], [4, 3, 1, 2]),  # 2, 3, 5 and 6 words
        ("order of the data", [1, 2, 3, 4], [4, 3, 2, 1]),
    ],
)
def test_rows_are_sorted_both_ways(opened: Page, by: str, first: list[int], reversed_: list[int]) -> None:
    opened.get_by_label("Sort by").select_option(by)
    assert ids(opened) == first
    opened.locator("#direction").click()
    assert ids(opened) == reversed_


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"lowest score": "1.5"}, [1, 2, 4]),
        ({"lowest score": "1", "highest score": "2"}, [1, 4]),
        ({"fewest words": "3", "most words": "5"}, [1, 3]),
        ({"Change": "better"}, [2, 4]),
        ({"Change": "worse"}, [3]),
        ({"Change": "same"}, [1]),
        ({"Change": "changed"}, [2, 3, 4]),
        ({"Change": "unchanged"}, [1]),
        ({"Group": "indoor"}, [1, 4]),
        ({"Group": "indoor", "lowest score": "1.6"}, [4]),
    ],
)
def test_rows_are_filtered(opened: Page, filters: dict[str, str], expected: list[int]) -> None:
    for label, value in filters.items():
        control = opened.get_by_label(label, exact=True)
        control.select_option(value) if label.istitle() else control.fill(value)
    assert ids(opened) == expected
    opened.get_by_role("button", name="Reset", exact=True).click()
    assert ids(opened) == [1, 2, 3, 4]


def test_the_chosen_score_decides_about_histogram_numbers_and_filter(opened: Page) -> None:
    assert opened.locator("figure.histogram:visible").get_attribute("data-score") == "cider"
    opened.get_by_label("Score", exact=True).select_option("BLEU-1")
    assert opened.locator("figure.histogram:visible").get_attribute("data-score") == "bleu_1"
    assert opened.locator(".row .value").first.inner_text() == "0.375"
    opened.get_by_label("lowest score").fill("0.6")
    assert ids(opened) == [2]


def test_dragging_over_the_histogram_filters_by_the_score(opened: Page) -> None:
    box = opened.locator("figure.histogram:visible svg").bounding_box()
    assert box is not None

    def place(value: float) -> tuple[float, float]:
        """The position of a value on the axis from 0 to 3, which is drawn from 10 to 410 of 420."""
        return box["x"] + box["width"] * (10 + 400 * value / 3) / 420, box["y"] + box["height"] / 2

    opened.mouse.move(*place(1.2))
    opened.mouse.down()
    opened.mouse.move(*place(2.4), steps=3)
    opened.mouse.up()
    assert ids(opened) == [1, 4]
    assert float(opened.get_by_label("lowest score").input_value()) == pytest.approx(1.2, abs=0.02)
    opened.mouse.click(*place(0.5))
    assert ids(opened) == [1, 2, 3, 4]


# What a row shows


def test_both_captions_stand_side_by_side_with_shared_words_marked(opened: Page) -> None:
    row = opened.locator(".row", has_text="#2")
    base, ours = row.locator(".said.base"), row.locator(".said.ours")
    assert base.locator("p").inner_text() == "a cow"
    assert base.bounding_box()["x"] < ours.bounding_box()["x"]  # type: ignore[index]
    # "a" is in one of the two references, "cat" in both, and "cow" in none.
    assert ours.locator("mark.most").all_inner_texts() == ["a"]
    assert ours.locator("mark.all").all_inner_texts() == ["cat"]
    assert base.locator(".alone").all_inner_texts() == ["cow"]
    assert row.locator(".change.better").inner_text() == "▲ +2.500"
    assert row.locator(".references li").all_inner_texts() == ["a cat sleeps", "sleepy cat"]
    assert row.locator("img").evaluate("image => image.naturalWidth / image.naturalHeight") == pytest.approx(
        1.5, abs=0.1
    )


def test_scores_and_curves_stand_above(opened: Page) -> None:
    assert [each.split() for each in opened.locator(".tiles li").all_inner_texts()] == [
        ["CIDEr", "1.250", "1.125", "to", "1.375", "base", "0.500"],
        ["Loss", "2.000"],
    ]
    titles = opened.locator(".charts circle title").evaluate_all("all => all.map(each => each.textContent)")
    assert "training, step 20: 2" in titles
    assert "CIDEr, step 20: 0.4" in titles
    bars = opened.locator("figure[data-score=cider] rect title").evaluate_all(
        "all => all.map(each => each.textContent)"
    )
    # The axis ends at 3, and has 25 bins of 0.12.
    assert {"2.88 to 3.00, fine-tuned: 1", "1.44 to 1.56, base model: 1", "0.96 to 1.08, base model: 1"} <= set(bars)


def test_a_page_without_a_base_model_has_one_caption_a_row(page: Page, tmp_path: Path) -> None:
    other = [dict(each, references=["others"]) for each in BASE]
    for folder, base in (("none", None), ("of other data", other), ("of fewer rows", BASE[:2])):
        page.goto(write(tmp_path / folder, base=base).as_uri())
        assert page.locator(".said").count() == len(OURS)
        assert not page.get_by_label("Change", exact=True).count()


def test_questions_have_their_answers_and_the_agreement_of_people(page: Page, tmp_path: Path) -> None:
    people = ["yes"] * 8 + ["no"] * 2

    def answer(text: str, accuracy: float) -> dict[str, Any]:
        ids = {"image_id": 7, "question_id": 70, "question": "is it a dog?"}
        return ids | {"answer": text, "answers": people, "scores": {"vqa_accuracy": accuracy}}

    page.goto(write(tmp_path, [answer("yes", 1.0)], [answer("no", 0.6)], VqaTrainer).as_uri())
    row = page.locator(".row")
    assert row.locator(".question").inner_text() == "is it a dog?"
    assert row.locator(".said p").all_inner_texts() == ["no", "yes"]
    # Two of ten people: sets of nine with one or two of them give (2 * 1/3 + 8 * 2/3) / 10 = 0.6.
    assert [" ".join(each.split()) for each in row.locator(".references li").all_inner_texts()] == [
        "yes 8 of 10, accuracy 1.00",
        "no 2 of 10, accuracy 0.60",
    ]
    assert row.locator(".change").inner_text() == "▲ +0.400"


def test_matches_list_the_ranked_texts_of_both_models(page: Page, tmp_path: Path) -> None:
    def match(texts: list[str], rank: int) -> dict[str, Any]:
        found = {"image_id": 5, "texts": texts, "text_scores": [0.9, 0.25], "rank": rank, "captions": ["a dog", "dogs"]}
        return found | {"scores": {f"text_recall_{limit}": float(rank <= limit) for limit in (1, 5, 10)}}

    page.goto(
        write(tmp_path, [match(["a dog", "a cat"], 1)], [match(["a cat", "a cow"], 4)], RetrievalTrainer).as_uri()
    )
    ranked = page.locator(".row .references li").all_inner_texts()
    assert [" ".join(each.split()) for each in ranked] == ["0.900 a dog ✓", "0.250 a cat"]
    assert page.locator(".row .value").inner_text() == "1"  # the inverse of the rank
    assert page.locator(".row .change").inner_text() == "▲ +0.750"
    page.locator(".row").click()
    assert page.get_by_role("dialog").locator("ol").all_inner_texts()[1].split("\n")[1] == "0.250 a cow"


def test_questions_that_cannot_be_scored_are_shown(page: Page, tmp_path: Path) -> None:
    record = {"image_id": 1, "question_id": 2, "question": "why?", "answer": "so", "answers": [], "scores": {}}
    errors = watch(page).errors
    page.goto(write(tmp_path, [record], None, VqaTrainer).as_uri())
    assert page.locator(".row p").all_inner_texts() == ["why?", "so"]
    assert errors == []


# Colours


@pytest.mark.parametrize(("system", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(13, 17, 23)")])
def test_colours_follow_the_system(opened: Page, system: Any, paper: str) -> None:
    opened.emulate_media(color_scheme=system)
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == paper


def test_a_choice_of_colours_is_remembered(opened: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    opened.emulate_media(color_scheme="light")
    button = opened.locator("#theme")
    button.click()
    button.click()
    assert button.get_attribute("aria-label") == "Colours: dark"
    opened.reload()
    assert opened.evaluate(paper) == "rgb(13, 17, 23)"
    opened.keyboard.press("t")
    assert opened.evaluate(paper) == "rgb(255, 255, 255)"
    assert button.inner_text() == "Auto"


# Keys and accessibility


def test_keys_move_open_and_search(opened: Page) -> None:
    def focused() -> str | None:
        return opened.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id")

    keys = opened.keyboard
    keys.press("j")
    assert focused() == "image 1"
    keys.press("ArrowDown")
    keys.press("j")
    keys.press("k")
    assert focused() == "image 2"
    keys.press("End")
    assert focused() == "image 4"
    keys.press("Enter")
    large = opened.get_by_role("dialog")
    assert "a red bus in the street" in large.inner_text()
    keys.press("ArrowLeft")
    assert "two birds on a wire" in large.inner_text()
    keys.press("Escape")
    assert not large.count()
    assert focused() == "image 3"
    keys.press("/")
    assert focused() == "search"
    keys.type("k?jt/")  # letters, not commands
    assert opened.get_by_label("Search").input_value() == "k?jt/"
    keys.press("Escape")
    assert focused() != "search"
    keys.press("?")
    assert "large view" in opened.get_by_role("dialog").inner_text()
    keys.press("Escape")
    assert not opened.get_by_role("dialog").count()


def test_controls_have_names_and_rows_say_their_place(opened: Page) -> None:
    assert (
        opened.locator("input, select, button").evaluate_all(
            "all => all.filter(each => !(each.labels?.length || each.ariaLabel || each.textContent.trim())).length"
        )
        == 0
    )
    row = opened.get_by_role("listitem", name="image 3")
    assert (row.get_attribute("aria-posinset"), row.get_attribute("aria-setsize")) == ("3", "4")
    assert opened.get_by_role("img", name="Histogram of CIDEr").count() == 1
    assert opened.get_by_role("img", name="Picture 3").count() == 1
    assert opened.locator("[tabindex='0']").count() == 1


# Foreign texts


HOSTILE = [
    "<script>alert(1)</script> dog",
    '"><img src=x onerror="alert(1)">',
    "</script></main><iframe src='javascript:alert(1)'></iframe>",
    "<!-- <script> {{ 7 * 7 }} &lt;b&gt; \u202egod \u2028 \\u003c",
    "<a href='http://127.0.0.1:9/'>x</a></style><link rel=stylesheet href='http://127.0.0.1:9/'>",
    "كلب يركض على الشاطئ",
]


def test_foreign_texts_are_shown_as_text_and_nothing_is_requested(page: Page, tmp_path: Path) -> None:
    ours = [
        caption(f"{text}{number}", text, 1.0, [text, "x"], group=text, prompt=text)
        for number, text in enumerate(HOSTILE)
    ]
    record = watch(page)
    report = write(tmp_path, ours, ours)
    page.goto(report.as_uri())
    for number, text in enumerate(HOSTILE):
        page.get_by_label("Search").fill(str(number) if number < 5 else "الشاطئ")
        row = page.locator(".row", has=page.get_by_text(f"#{text}{number}", exact=True))
        for shown in (
            ".said.base p",
            ".said.ours p",
            ".references li:first-child bdi",
            ".chip >> nth=0",
            ".chip >> nth=1",
        ):
            assert row.locator(shown).evaluate("each => each.textContent") == text
        assert row.locator(".said.ours p").evaluate("each => getComputedStyle(each).direction") == (
            "rtl" if number == 5 else "ltr"
        )
        row.click()
        assert page.get_by_role("dialog").locator(".said.ours p").evaluate("each => each.textContent") == text
        page.keyboard.press("Escape")
    assert page.locator("iframe, a, link, main img:not([src^='data:image/jpeg;base64,'])").count() == 0
    assert page.locator("script").count() == 3
    assert (record.requests, record.errors, record.dialogs) == ([report.as_uri()], [], [])


ATTACKS = {
    "fetch": "fetch('URL')",
    "picture": "new Promise((done, fail) => Object.assign(new Image(), { onload: done, onerror: fail, src: 'URL' }))",
    "script": """new Promise((done, fail) => {
        const script = document.createElement('script');
        script.append('window.ran = 1');
        document.body.append(script);
        (window.ran ? done : fail)();
    })""",
    "markup": "Promise.resolve().then(() => { document.body.innerHTML = '<b>markup</b>'; })",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_pages_policy_blocks_requests_foreign_scripts_and_markup(opened: Page, attack: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = ATTACKS[attack].replace("URL", f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert opened.evaluate(f"({code}).then(() => 'done', () => 'blocked')") == "blocked"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()


def test_odd_values_do_not_break_the_page(page: Page, tmp_path: Path) -> None:
    """Half a surrogate pair, a score that is no number, and pictures that cannot be read."""
    ours = [caption(1, "half \udc80 a pair", float("nan"), ["r"]), caption(2, "", 1.0, ["r"], group="a")]
    record = watch(page)
    page.goto(write(tmp_path, ours, None, find_picture={1: b"no picture", 2: picture()}.get).as_uri())
    assert page.locator(".row .frame").first.inner_text() == "no picture"
    assert page.locator(".row .value").all_inner_texts() == ["–", "1"]
    page.get_by_label("Sort by").select_option("score")
    assert ids(page) == [2, 1]
    assert record.errors == []


# Pictures and size


def test_thumbnails_are_small_and_without_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"  # ImageDescription
    big = picture(size=(1200, 900), exif=exif, comment=b"at home")
    found = make_thumbnails(lambda _: big, 3, tmp_path / REPORT_FOLDER, 10**6)
    assert found.prefix == INLINE
    content = base64.b64decode(found.files[0])
    assert b"home" not in content
    thumbnail = Image.open(io.BytesIO(content))
    assert thumbnail.size == (320, 240)
    assert not thumbnail.getexif()
    assert not (tmp_path / REPORT_FOLDER).exists()


def test_large_thumbnails_are_files_beside_the_page(page: Page, tmp_path: Path) -> None:
    record = watch(page)
    report = write(tmp_path, max_inline_bytes=2000)
    page.goto(report.as_uri())
    assert page.locator(".row img").evaluate_all("all => Promise.all(all.map(each => each.decode()))") is not None
    files = sorted((tmp_path / REPORT_FOLDER).glob("*"))
    assert [each.name for each in files] == [f"{number:06}.jpg" for number in range(4)]
    assert sorted(record.requests) == sorted([report.as_uri(), *(each.as_uri() for each in files)])
    assert record.errors == []
    write(tmp_path)
    assert not (tmp_path / REPORT_FOLDER).exists()


def wait_until(page: Page, condition: str) -> None:
    """Ask until `condition` holds. Playwright's own waiting needs `eval`, which the page forbids."""
    end = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def test_only_visible_rows_of_5000_are_in_the_document(page: Page, tmp_path: Path) -> None:
    ours = [caption(number, f"caption {number}", number / 5000, ["a reference"]) for number in range(5000)]
    report = write(tmp_path, ours, ours)
    assert report.stat().st_size < 60_000_000
    page.goto(report.as_uri())
    assert page.locator("#count").inner_text() == "5,000 images"
    for place in ("document.body.scrollHeight / 2", "document.body.scrollHeight", "0"):
        page.evaluate(f"scrollTo(0, {place})")
        rows = "[...document.querySelectorAll('.row')]"
        inside = f"{rows}.filter(row => row.getBoundingClientRect().top < innerHeight)"
        wait_until(page, f"{rows}.length < 20 && {inside}.length >= 1")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "image 4999"
    page.get_by_label("Sort by").select_option("score")
    assert ids(page)[0] == 4999


def test_files_are_only_read_from_the_folders_of_the_data(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "private.jpg"
    inside.mkdir()
    outside.write_bytes(picture())
    (inside / "a.jpg").write_bytes(picture())
    names = {1: ["missing.jpg", "a.jpg"], 2: ["../private.jpg"], 3: [str(outside)], 4: ["missing.jpg"]}
    find = files_of(names, [inside])
    assert find is not None
    assert [find(number) for number in (1, 2, 3, 4, 5)] == [inside / "a.jpg", None, None, None, None]
    assert files_of({2: ["../private.jpg"]}, [inside]) is None
