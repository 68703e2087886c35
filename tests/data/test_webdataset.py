"""Webdataset tars are read sample by sample, whatever files the samples have, and what is missing is told by sample."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hub_data import read
from hub_server import HubServer
from PIL import Image

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.checks import check_splits
from blip_recipe.data.images import open_image
from blip_recipe.data.load import load_split
from blip_recipe.data.shards import open_stream
from blip_recipe.data.streaming import CaptionStream
from blip_recipe.errors import RecipeError
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.data import load_questions

Member = tuple[str, bytes]
SAMPLES = range(6)


def picture(number: int) -> bytes:
    """A PNG that is `number + 1` pixels wide. Its extension does not matter."""
    buffer = io.BytesIO()
    Image.new("RGB", (number + 1, 2), (40 * number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def text(number: int) -> bytes:
    return f"picture {number}\nnumber {number}".encode()


def facts(number: int, **content: Any) -> bytes:
    return json.dumps(content or {"caption": [f"picture {number}", f"number {number}"]}).encode()


def well_formed(number: int) -> list[Member]:
    return [(f"{number:04}.jpg", picture(number)), (f"{number:04}.txt", text(number))]


def mixed_pictures(number: int) -> list[Member]:
    extension = ("png", "jpg", "JPEG", "webp")[number % 4]
    return [(f"{number:04}.{extension}", picture(number)), (f"{number:04}.txt", text(number))]


def upper_case(number: int) -> list[Member]:
    return [(f"{number:04}.JPG", picture(number)), (f"{number:04}.TXT", text(number))]


def captions_in_json(number: int) -> list[Member]:
    return [(f"{number:04}.json", facts(number)), (f"{number:04}.jpg", picture(number))]


def text_or_json(number: int) -> list[Member]:
    captions = (f"{number:04}.json", facts(number)) if number % 2 else (f"{number:04}.caption", text(number))
    return [(f"{number:04}.jpg", picture(number)), captions]


def other_files_too(number: int) -> list[Member]:
    """More files in some samples, and facts with other keys and types in each."""
    others = [
        ("json", facts(number, key=str(number), width=number, **{f"only {number}": [number]})),
        ("npy", b"no array"),
    ]
    more = [("cls", b"no class")] if number == 3 else []
    return [
        *well_formed(number),
        *((f"{number:04}.{name}", content) for name, content in [*others[number % 3 :], *more]),
    ]


def in_folders(number: int) -> list[Member]:
    hidden = [(f"part/._{number:04}.jpg", b"not a picture")]
    return [(f"part/{name}", content) for name, content in well_formed(number)] + hidden


LAYOUTS: list[Callable[[int], list[Member]]] = [
    mixed_pictures,
    upper_case,
    captions_in_json,
    text_or_json,
    other_files_too,
    in_folders,
]


def make_tar(members: Sequence[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(folder: Path, members: Sequence[Member], name: str = "train-0.tar") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(make_tar(members))
    return folder


def members_of(layout: Callable[[int], list[Member]], numbers: Sequence[int] = SAMPLES) -> list[Member]:
    return [member for number in numbers for member in layout(number)]


def torn_apart(numbers: Sequence[int] = SAMPLES) -> list[Member]:
    """All pictures before all texts."""
    return sorted(members_of(well_formed, numbers), key=lambda member: member[0].rpartition(".")[2])


def with_gaps() -> list[Member]:
    """Sample 2 without its picture, sample 4 without its text."""
    return [each for each in members_of(well_formed) if each[0] not in ("0002.jpg", "0004.txt")]


def arguments(folder: Path | str, **keys: Any) -> CaptionDataArguments:
    return CaptionDataArguments(dataset_name=str(folder), **keys)


def rows_of(folder: Path, **keys: Any) -> list[tuple[int, int, list[str]]]:
    """Image id, number of the picture and captions of each row."""
    rows = load_split(arguments(folder, **keys), "train")
    return [(row["image_id"], open_image(row["image"]).width - 1, row["captions"]) for row in rows]


def stream(folder: Path, on_bad_image: Any = "fail", **keys: Any) -> CaptionStream:
    split = open_stream(arguments(folder, streaming=True, on_bad_image=on_bad_image, **keys))
    own: dict[str, Any] = {"image_size": 8, "seed": 7, "augmentation": "none", "captions_per_image": None}
    return CaptionStream(split, **own, normalize_captions=False, shuffle_buffer_size=3, on_bad_image=on_bad_image)


def numbers_of(rows: Sequence[dict[str, Any]]) -> list[tuple[int, list[str]]]:
    return [(row["image"].shape[2] - 1, row["captions"]) for row in rows]


RIGHT = [(number, number, [f"picture {number}", f"number {number}"]) for number in SAMPLES]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", [well_formed, *LAYOUTS], ids=lambda each: getattr(each, "__name__", str(each)))
def test_every_layout_gives_the_rows_of_a_well_formed_tar(
    tmp_path: Path, layout: Callable[[int], list[Member]], streaming: bool
) -> None:
    folder = write_tar(tmp_path / "data", members_of(layout))
    assert rows_of(folder, streaming=streaming) == RIGHT


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_is_streamed_and_resumed_like_a_well_formed_tar(
    tmp_path: Path, layout: Callable[[int], list[Member]]
) -> None:
    plain = write_tar(tmp_path / "plain", members_of(well_formed))
    folder = write_tar(tmp_path / "data", members_of(layout))
    rows = list(islice(stream(folder), 12))
    assert numbers_of(rows) == numbers_of(list(islice(stream(plain), 12)))
    resumed = stream(folder)
    resumed.positions = {0: rows[4]["progress"].position}
    assert numbers_of(list(islice(resumed, 7))) == numbers_of(rows[5:])


def test_tars_of_different_kinds_are_one_split(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "data", members_of(mixed_pictures, range(3)))
    write_tar(folder, members_of(captions_in_json, range(3, 6)), "train-1.tar")
    assert rows_of(folder) == rows_of(folder, streaming=True) == RIGHT
    assert len({str(each) for each in numbers_of(list(islice(stream(folder), 6)))}) == 6


def test_extensions_are_columns_that_recipes_can_name(tmp_path: Path) -> None:
    members = members_of(
        lambda n: [
            (f"{n:04}.png", picture(5 - n)),
            (f"{n:04}.jpg", picture(n)),
            (f"{n:04}.txt", b"another text"),
            (f"{n:04}.en.txt", text(n)),
            (f"{n:04}.id", str(70 + n).encode()),
        ]
    )
    folder = write_tar(tmp_path / "data", members)
    keys: dict[str, Any] = {"image_column": "png", "caption_column": ["en.txt"]}
    right = [(5 - number, captions) for _, number, captions in RIGHT]
    for streaming in (False, True):
        rows = rows_of(folder, **keys, image_id_column="id", streaming=streaming)
        assert [row[0] for row in rows] == [70 + number for number in SAMPLES]
        assert [row[1:] for row in rows] == right
        by_name = rows_of(folder, **keys, image_id_column="__key__", streaming=streaming)
        assert [row[0] for row in by_name] == [f"{number:04}" for number in SAMPLES]
    # Without names: the preferred extensions.
    assert [row[1:] for row in rows_of(folder)] == [(number, ["another text"]) for number in SAMPLES]


def test_a_column_that_the_tars_lack_is_named(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "data", members_of(well_formed))
    for streaming in (False, True):
        with pytest.raises(RecipeError, match=r"no column 'capton', which caption_column names: .* jpg, txt"):
            load_split(arguments(folder, caption_column=["capton"], streaming=streaming), "train")


def test_several_texts_of_a_sample_have_to_be_chosen(tmp_path: Path) -> None:
    members = [*members_of(well_formed), ("0009.jpg", picture(9)), ("0009.txt", b"one"), ("0009.caption", b"two")]
    folder = write_tar(tmp_path / "data", members)
    with pytest.raises(RecipeError, match=r"several columns that could be captions \(txt, caption\)"):
        load_split(arguments(folder), "train")
    assert load_split(arguments(folder, caption_column=["txt"]), "train")[6]["captions"] == ["one"]


@pytest.mark.parametrize("streaming", [False, True])
def test_samples_without_picture_or_text_are_named_and_can_be_skipped(tmp_path: Path, streaming: bool) -> None:
    folder = write_tar(tmp_path / "data", with_gaps())
    keys = arguments(folder, eval_split="train", streaming=streaming)
    rows = {"eval": load_split(keys, "train")}
    with pytest.raises(RecipeError, match=r"2 of 6 rows cannot be used") as told:
        check_splits(rows, keys)
    assert "image_id 2: train-0.tar/0002 is empty: there is no picture" in str(told.value)
    assert "image_id 4: it has no caption (train-0.tar/0004.jpg)" in str(told.value)
    checked = check_splits(rows, arguments(folder, eval_split="train", on_bad_image="skip"))
    assert checked.rows["eval"]["image_id"][:] == [0, 1, 3, 5]
    assert [each.row for each in checked.skipped] == [2, 4]


def test_samples_without_picture_or_text_are_named_in_a_stream_and_can_be_skipped(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "data", with_gaps())
    *_, end = stream(folder)
    assert "train-0.tar/000" in end["progress"].fault
    rows = list(islice(stream(folder, "skip"), 8))
    assert {number for number, _ in numbers_of(rows)} == {0, 1, 3, 5}
    reasons = {each.row: each.reason for row in rows for each in row["progress"].skipped}
    assert reasons.keys() == {2, 4}
    assert "train-0.tar/0002" in reasons[2]
    assert "train-0.tar/0004.jpg" in reasons[4]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("on_bad_image", ["fail", "skip"])
def test_tars_whose_samples_are_torn_apart_are_told_in_one_message(
    tmp_path: Path, streaming: bool, on_bad_image: Any
) -> None:
    folder = write_tar(tmp_path / "data", torn_apart())
    keys = arguments(folder, streaming=streaming, on_bad_image=on_bad_image)
    with pytest.raises(
        RecipeError, match=r"6 of 6 samples have only a picture or only a text, such as 0000 in train-0"
    ):
        load_split(keys, "train")
    with pytest.raises(RecipeError, match="one after the other"):
        stream(folder, on_bad_image)


def test_samples_beside_torn_ones_can_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_tar(tmp_path / "data", members_of(well_formed, range(4)) + torn_apart(range(4, 6)))
    told = "2 of 6 samples have only a picture or only a text, such as 0004 in train-0.tar"
    with pytest.raises(RecipeError, match=told):
        load_split(arguments(folder), "train")
    keys = arguments(folder, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        checked = check_splits({"train": load_split(keys, "train")}, keys)
    assert told in caplog.text
    assert len(checked.skipped) == 4
    assert [row["captions"] for row in checked.rows["train"]] == [captions for _, _, captions in RIGHT[:4]]


def test_tars_of_pictures_alone_are_told(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "data", [(f"{number:04}.jpg", picture(number)) for number in SAMPLES])
    for streaming in (False, True):
        with pytest.raises(RecipeError, match=r"train-0.tar has no captions in its first 6 samples, only jpg"):
            load_split(arguments(folder, streaming=streaming), "train")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("0002.txt", b"caf\xe9", r"train-0.tar/0002.txt cannot be read .*: expected text in UTF-8"),
        ("0002.json", b"{", r"train-0.tar/0002.json cannot be read .*: expected JSON"),
        ("0002.JPG", picture(1), r"the sample 0002 has two files with the extension"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    members = [each for each in members_of(well_formed) if each[0] != "0002.txt"]
    place = next(place for place, each in enumerate(members) if each[0] == "0002.jpg")
    folder = write_tar(tmp_path / "data", [*members[: place + 1], (name, content), *members[place + 1 :]])
    with pytest.raises(RecipeError, match=told):
        load_split(arguments(folder), "train")


def test_questions_in_tars_have_the_extensions_as_columns(tmp_path: Path) -> None:
    members = members_of(
        lambda n: [
            (f"{n:04}.{('png', 'jpg')[n % 2]}", picture(n)),
            (f"{n:04}.question", b"How many?"),
            (f"{n:04}.answer", str(n).encode()),
        ]
    )
    folder = write_tar(tmp_path / "data", members)
    rows = load_questions(VqaDataArguments(dataset_name=str(folder)), "train")
    assert rows["question"][:] == ["How many?"] * 6
    assert rows["answers"][:] == [[str(number)] for number in SAMPLES]
    assert [open_image(row["image"]).width - 1 for row in rows] == list(SAMPLES)


@pytest.fixture(scope="module", name="hub")
def fixture_hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.publish_dataset("lab/mixed", {"train-0.tar": make_tar(members_of(mixed_pictures))})
        server.publish_dataset("lab/gaps", {"train-0.tar": make_tar(with_gaps())})
        server.publish_dataset("lab/torn", {"train-0.tar": make_tar(torn_apart())})
        yield server


def test_tars_on_a_hub_are_read_the_same_way(hub: HubServer) -> None:
    requests = [
        ({"dataset_name": name, "streaming": streaming}, "train")
        for name in ("lab/mixed", "lab/torn")
        for streaming in (False, True)
    ]
    mixed, streamed, torn, torn_stream = read(hub, *requests)
    right = {"ids": [*SAMPLES], "captions": [row[2] for row in RIGHT], "sizes": [[number + 1, 2] for number in SAMPLES]}
    assert mixed == streamed == right
    for told in (torn, torn_stream):
        assert "6 of 6 samples have only a picture or only a text, such as 0000 in train-0.tar" in told["error"]


def test_samples_on_a_hub_are_named_by_their_tar(hub: HubServer) -> None:
    keys = {"dataset_name": "lab/gaps", "eval_split": "train"}
    plain, streamed = read(hub, (keys, "train"), (keys | {"streaming": True}, "train"), checked=True)
    for told in (plain, streamed):
        assert "train-0.tar/0002 is empty: there is no picture" in told["error"]
        assert "it has no caption (train-0.tar/0004.jpg)" in told["error"]
