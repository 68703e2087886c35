"""Inputs that nobody would write: each ends in a result that holds, or in an error that a person can act on.

No other exception, no wait of more than five seconds, no file outside. `make test` tries some of each kind;
`make fuzz` tries `FUZZ_INPUTS` (200,000) and prints how many of each kind were read and how many refused.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from cards import PREDICTIONS, make_facts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blip_recipe.captioning.output import LineFormat, merge_lines, write_line
from blip_recipe.card.rendering import render_card
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.captions import normalize_caption, read_captions
from blip_recipe.data.images import BadImageError, check_picture, open_image
from blip_recipe.data.load import load_split
from blip_recipe.data.pixels import read_pixels
from blip_recipe.data.rows import PathRoot
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.files import read_predictions, read_references
from blip_recipe.metrics.scorer import CaptionScorer
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.checks import check_recipe
from blip_recipe.recipe.parsing import read_recipe

INPUTS = int(os.environ.get("FUZZ_INPUTS", 1_500))
PATIENCE = 5.0
"""Seconds."""

SHARES = {
    "recipes": 0.08,
    "captions files": 0.14,
    "scored files": 0.16,
    "imagefolders": 0.01,
    "pictures": 0.2,
    "texts": 0.13,
    "cards": 0.02,
    "rows of CSV": 0.08,
    "addresses": 0.08,
    "paths": 0.08,
}
"""Of the inputs: what takes longer gets fewer."""

outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in SHARES}


@pytest.fixture(scope="module", autouse=True)
def summary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own, and what came of the inputs at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()
    for kind, counts in outcomes.items():
        print(f"{kind}: {counts.total():,} inputs, {counts['read']:,} read, {counts['refused']:,} refused")


def fuzz(kind: str) -> Callable[[Any], Any]:
    """How many inputs of a kind are tried; each try starts from an empty head."""
    return settings(
        max_examples=max(10, round(INPUTS * SHARES[kind])),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def outcome(kind: str) -> Iterator[None]:
    """Note whether an input was read or refused as it should be; anything else, and a hang, goes on as an error."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"an input took more than {PATIENCE:g} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    except RecipeError as error:
        if not str(error).strip():
            raise
        outcomes[kind]["refused"] += 1
    else:
        outcomes[kind]["read"] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


words = st.text(st.characters(), max_size=20) | st.sampled_from(
    [
        "",
        "a",
        "../x",
        "/etc/passwd",
        "0.png",
        "http://127.0.0.1/",
        "\x00",
        "\ud800",
        "\r\n",
        "{{ 7 * 7 }}",
        "---",
        "${HOME}",
    ]
)
numbers = st.integers(-3, 3) | st.sampled_from([2**63, -(2**63) - 1, 10**30]) | st.floats()
values: Any = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def mutated(content: bytes, most: int = 4) -> Any:
    """`content` with parts cut out, doubled or changed."""

    def apply(edits: list[tuple[str, int, int, bytes]]) -> bytes:
        changed = bytearray(content)
        for how, place, length, new in edits:
            start = place % (len(changed) + 1)
            if how == "change":
                changed[start : start + len(new)] = new
            elif how == "cut":
                del changed[start : start + length]
            elif how == "double":
                changed[start:start] = changed[start : start + length]
            else:
                del changed[start:]
        return bytes(changed)

    hows = st.sampled_from(["change", "change", "cut", "double", "end"])
    return st.lists(
        st.tuples(hows, st.integers(0, 2**20), st.integers(1, 40), st.binary(min_size=1, max_size=4)), max_size=most
    ).map(apply)


def with_odd_parts(content: Any) -> Any:
    """JSON like `content`, in which some parts are something else, or gone."""
    usual: Any
    if isinstance(content, dict):
        fixed = {key: with_odd_parts(value) for key, value in content.items()}
        whole = st.fixed_dictionaries(fixed)
        usual = st.integers(0, 9).flatmap(lambda die: st.fixed_dictionaries({}, optional=fixed) if die == 0 else whole)
    elif isinstance(content, list):
        usual = st.tuples(*map(with_odd_parts, content)).map(list)
    else:
        usual = st.just(content)
    return st.integers(0, 39).flatmap(lambda die: values if die == 0 else usual)


def as_json(content: Any) -> Any:
    """Files of JSON like `content`, some of them damaged."""
    whole = json.dumps(content).encode()
    return (
        with_odd_parts(content).map(lambda odd: json.dumps(odd).encode("utf-8"))
        | mutated(whole)
        | st.binary(max_size=20)
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for what an input is read from; whatever appears beside it is one file too many."""
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "0.png").write_bytes(PICTURES["PNG"])
    yield folder
    assert [path for path in tmp_path.rglob("*") if path.parent != folder and path != folder] == []


RECIPE = {
    "model_name_or_path": "tiny",
    "dataset_name": "shapes",
    "caption_column": ["a", "b"],
    "prompt": "a picture of ",
    "seed": 7,
    "learning_rate": 1e-4,
    "lr_scheduler_kwargs": {"num_cycles": 0.5},
    "metrics": ["bleu"],
    "generation_max_length": 20,
    "use_peft": False,
    "num_train_epochs": 2,
    "eval_split": "test",
    "eval_strategy": "epoch",
    "warmup_steps": 0.1,
    "report_to": "none",
    "image_root": None,
}


@fuzz("recipes")
@given(content=as_json(RECIPE))
def test_a_recipe_is_read_or_refused(place: Path, content: bytes) -> None:
    (place / "recipe.json").write_bytes(content)
    words = [str(place / "recipe.json"), "--use_cpu", "true"]
    with outcome("recipes"):
        check_recipe(read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=words))


COCO = {
    "images": [{"id": 3, "file_name": "0.png"}, {"id": 4, "file_name": "0.png", "coco_url": "http://a/b.jpg"}],
    "annotations": [
        {"image_id": 3, "caption": "a dog"},
        {"image_id": 4, "caption": "x"},
        {"image_id": 3, "caption": "y"},
    ],
}
SENTENCES = [{"raw": "a dog", "tokens": ["a", "dog"]}]
KARPATHY = {
    "images": [
        {"split": "train", "filepath": "", "filename": "0.png", "cocoid": 5, "sentences": SENTENCES},
        {"split": "train", "filename": "0.png", "imgid": 5, "cocoid": 6, "sentences": SENTENCES},
    ]
}
FIELDS = ("caption_column", "image_column", "image_id_column")


@fuzz("captions files")
@given(
    content=as_json(COCO) | as_json(KARPATHY),
    keys=st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(["coco_url", "cocoid", "caption"]) for key in FIELDS}
    ),
    split=st.sampled_from(["train", "train+train", "test", "", "+"]),
)
def test_a_captions_file_is_read_or_refused(place: Path, content: bytes, keys: dict[str, Any], split: str) -> None:
    (place / "captions.json").write_bytes(content)
    if "caption_column" in keys:
        keys = keys | {"caption_column": [keys["caption_column"]]}
    with outcome("captions files"):
        rows = load_split(CaptionDataArguments(dataset_name=str(place / "captions.json"), **keys), split)
        assert rows.column_names == ["image", "image_id", "captions"]
        for row in rows:
            path = row["image"] and row["image"]["path"]  # the check before training names rows without a picture
            assert path is None or "://" in path or path.startswith("/")
            assert all(caption == caption.strip() != "" for caption in row["captions"])


RESULTS = [{"image_id": 3, "caption": "a dog"}, {"image_id": 4, "caption": "x"}]


@fuzz("scored files")
@given(content=as_json(RESULTS) | as_json(COCO) | st.lists(as_json(RESULTS[0]), max_size=3).map(b"\n".join))
def test_a_file_to_score_is_read_or_refused(place: Path, content: bytes) -> None:
    (place / "file.json").write_bytes(content)
    for read in (read_predictions, read_references):
        with outcome("scored files"):
            for image_id in read(place / "file.json"):  # type: ignore[operator]
                assert isinstance(image_id, (int, str))


LINE = {"file_name": "0.png", "text": "a dog", "image_id": 3, "captions": ["a", "b"]}
csv_lines = st.lists(st.lists(words, min_size=1, max_size=3), min_size=1, max_size=3).map(
    lambda rows: "\n".join(
        [f"file_name,text{number}"[: 40 - number] for number in [0]] + [",".join(row) for row in rows]
    )
)


@fuzz("imagefolders")
@given(
    name=st.sampled_from(["metadata.jsonl", "metadata.csv"]),
    lines=st.lists(as_json(LINE), min_size=1, max_size=3).map(b"\n".join),
    table=csv_lines.map(lambda text: text.encode("utf-8", "surrogatepass")),
)
def test_an_imagefolder_is_read_or_refused(place: Path, name: str, lines: bytes, table: bytes) -> None:
    for other in ("metadata.jsonl", "metadata.csv"):
        (place / other).unlink(missing_ok=True)
    (place / name).write_bytes(lines if name.endswith("jsonl") else table)
    with outcome("imagefolders"):
        load_split(CaptionDataArguments(dataset_name=str(place)), "train")


def encode(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = {
    "PNG": encode("PNG"),
    "palette": encode("PNG", "P"),
    "JPEG": encode("JPEG"),
    "progressive": encode("JPEG", progressive=True),
    "CMYK": encode("JPEG", "CMYK"),
    "turned": encode(
        "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    ),
    "GIF": encode("GIF"),
    "WEBP": encode("WEBP"),
    "BMP": encode("BMP"),
    "TIFF": encode("TIFF"),
    "integers": encode("TIFF", "I"),
    "floats": encode("TIFF", "F"),
    "PPM": encode("PPM"),
    "ICO": encode("ICO"),
    "JPEG 2000": encode("JPEG2000"),
}


@pytest.mark.filterwarnings("ignore")
@fuzz("pictures")
@given(content=st.sampled_from(sorted(PICTURES)).flatmap(lambda name: mutated(PICTURES[name], most=6)))
def test_a_picture_is_opened_as_the_check_says_or_refused(content: bytes) -> None:
    with outcome("pictures"):
        opened = open_image({"bytes": content, "path": None})
        assert opened.mode == "RGB"
        pixels = read_pixels({"bytes": content, "path": None})
        assert tuple(pixels.shape) == (3, opened.height, opened.width)
        assert check_picture({"bytes": content, "path": None}) is None


def shared_pictures() -> list[Path]:
    folder = Path(os.environ.get("BLIP_RECIPE_SHARED", Path(__file__).parents[3] / "shared")) / "data"
    found = [*sorted((folder / "weird").glob("*")), *sorted((folder / "photos/train").glob("*.jpg"))[:3]]
    return [path for path in found if path.stat().st_size and "bomb" not in path.name and path.suffix != ".json"]


@pytest.mark.filterwarnings("ignore")
@fuzz("pictures")
@given(data=st.data())
def test_a_damaged_photograph_is_opened_or_refused(shared: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(shared_pictures()))
    content = data.draw(mutated(path.read_bytes()))
    with outcome("pictures"):
        if fault := check_picture({"bytes": content, "path": None}):
            raise BadImageError(fault)
        assert read_pixels({"bytes": content, "path": None}).shape[0] == 3


@pytest.fixture(scope="module")
def scorer() -> Iterator[CaptionScorer]:
    with CaptionScorer(["bleu", "rouge_l", "cider"]) as running:
        running.java = None  # whose start would take most of the time
        yield running


captions = (
    st.text(max_size=60) | words | st.sampled_from(["a dog . " * 200, "\u2028", "a\x85b", "\u202e", "' '' \" ``"])
)


@fuzz("texts")
@given(
    cell=values | captions | st.lists(captions, max_size=3), caption=captions, references=st.lists(captions, min_size=1)
)
def test_captions_are_cleaned_and_scored(scorer: CaptionScorer, cell: Any, caption: str, references: list[str]) -> None:
    with outcome("texts"):
        try:
            found = read_captions(cell)
        except TypeError as error:
            raise RecipeError(str(error)) from error
        assert all(each == each.strip() != "" for each in found)
        clean = normalize_caption(caption)
        assert normalize_caption(clean) == clean
        scores = scorer.score({1: caption, 2: "a dog"}, {1: references, 2: ["a dog"]})
        assert all(np.isfinite(score) and score >= 0 for score in scores.corpus.values())


CARD = render_card(make_facts("coco_full"))


def metadata_of(card: str) -> Any:
    assert card.startswith("---\n")
    return yaml.safe_load(card[4 : card.index("\n---\n")])


@fuzz("cards")
@given(caption=captions | st.text(st.sampled_from("<>`|[]()!#-\n{}%&;scriptmg=:/\"'\\*_~ ")), data=st.data())
def test_captions_change_neither_the_metadata_nor_the_structure_of_a_card(caption: str, data: st.DataObject) -> None:
    other = data.draw(captions)
    odd = [each | {"caption": caption, "references": [other, *each["references"]]} for each in PREDICTIONS]
    with outcome("cards"):
        card = render_card(make_facts("coco_full", predictions=odd))
        card.encode()
        assert metadata_of(card) | {"language": None} == metadata_of(CARD) | {"language": None}
        for mark in ("<script", "<img", "\n---\n", "\n# ", "\n## ", "\n```", "\n<"):
            assert card.count(mark) == CARD.count(mark), mark


names = st.binary(max_size=20).map(os.fsdecode) | words.filter(str.isprintable)
"""Names of files, of any bytes."""


@fuzz("rows of CSV")
@given(
    rows=st.lists(st.tuples(names, names | st.text(max_size=60)), max_size=4),
    row_format=st.sampled_from(["csv", "jsonl"]),
)
def test_names_and_captions_come_back_from_an_output(place: Path, rows: list[tuple[str, str]], row_format: str) -> None:
    output = io.BytesIO()
    with outcome("rows of CSV"):
        for name, caption in rows:
            write_line(output, {"image": name, "caption": caption}, LineFormat(row_format))
        (place / "out").write_bytes(output.getvalue())
        assert merge_lines(place / "out", LineFormat(row_format)).captioned <= {name for name, _ in rows}
        if row_format == "csv":
            text = io.StringIO(output.getvalue().decode("utf-8", "surrogateescape"), newline="")
            assert len(list(csv.reader(text))) == len(rows)


hosts = words | st.sampled_from(
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:7f00:1]", "%6c", "①", "a@127.0.0.1", "2130706433"]
)


@fuzz("addresses")
@given(scheme=st.sampled_from(["http", "https", "HTTP", "file", "ftp"]) | words, host=hosts, path=words, port=words)
def test_no_address_of_a_data_set_reaches_this_machine(scheme: str, host: str, path: str, port: str) -> None:
    def look_up(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]

    def connect(*_: Any) -> None:
        raise AssertionError("connected")

    with pytest.MonkeyPatch.context() as patch, outcome("addresses"):
        patch.setattr(socket, "getaddrinfo", look_up)
        patch.setattr(socket.socket, "connect", connect)
        open_image({"bytes": None, "path": f"{scheme}://{host}:{port}/{path}"}, timeout=0.05)
        raise AssertionError("opened")


@fuzz("paths")
@given(parts=st.lists(words | st.sampled_from(["..", ".", "", "~", "\\..\\"]), max_size=5), absolute=st.booleans())
def test_no_path_of_a_data_set_leaves_its_folder(place: Path, parts: list[str], absolute: bool) -> None:
    path = "/".join(["", *parts] if absolute else parts)
    with outcome("paths"):
        (found,) = PathRoot(place).resolve([path], "here")
        if found is not None and "://" not in found:
            assert Path(os.path.normpath(found)).is_relative_to(place)
            assert found != str(place)
