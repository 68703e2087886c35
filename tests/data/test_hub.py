"""Data sets are read from a Hub with the real clients, and what is wrong with one there is said plainly."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from hub_data import read
from hub_server import HubServer
from layouts import LAYOUTS, make_records
from PIL import Image


def parquet(first: int, count: int, word: str) -> bytes:
    """`count` images with ids from `first` on, and as many pixels across."""
    rows = []
    for number in range(first, first + count):
        buffer = io.BytesIO()
        Image.new("RGB", (number + 1, 2)).save(buffer, "PNG")
        picture = {"bytes": buffer.getvalue(), "path": f"{number}.png"}
        rows.append({"image": picture, "cocoid": number, "en": [f"{word} {number}", "other"], "de": ["Bild", "Foto"]})
    table = Dataset.from_list(rows)
    table = table.cast(Features({**table.features, "image": ImageFeature()}))
    file = io.BytesIO()
    table.to_parquet(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
        card += "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "restval", "val"))
        files = {
            "README.md": (card + "---\n").encode(),
            "data/train-0.parquet": parquet(0, 2, "first"),
            "data/restval-0.parquet": parquet(2, 1, "rest"),
            "data/val-0.parquet": parquet(3, 1, "val"),
        }
        server.publish_dataset("lab/coco", files)
        server.publish_dataset("lab/coco", {"data/train-0.parquet": parquet(10, 1, "new")})
        server.publish_dataset("lab/script", {"script.py": b"import datasets\n"})
        server.publish_dataset("lab/secret", files, private=True)
        server.publish_dataset("lab/gated", files, gated=True)
        yield server


def test_splits_revisions_and_columns_are_read_as_the_recipe_says(hub: HubServer) -> None:
    before_the_last = hub.commits("lab/coco", kind="dataset")[1].oid
    old = {"dataset_name": "lab/coco", "dataset_revision": before_the_last}
    added, newest, german = read(
        hub,
        ({**old, "image_id_column": "cocoid"}, "train+restval"),
        ({"dataset_name": "lab/coco"}, "train"),
        ({**old, "caption_column": ["de"]}, "val"),
    )
    assert added["ids"] == [0, 1, 2]
    assert added["captions"] == [["first 0", "other"], ["first 1", "other"], ["rest 2", "other"]]
    assert added["sizes"] == [[1, 2], [2, 2], [3, 2]]
    assert newest["captions"] == [["new 10", "other"]]
    assert german["captions"] == [["Bild", "Foto"]]


def test_streaming_fetches_the_rows_that_are_used_and_no_other_split(hub: HubServer, tmp_path: Path) -> None:
    hub.requests.clear()
    revision = hub.commits("lab/coco", kind="dataset")[1].oid
    keys: dict[str, Any] = {"dataset_name": "lab/coco", "dataset_revision": revision, "image_id_column": "cocoid"}
    keys["streaming"] = True
    first, added, wrong = read(
        hub, ({**keys, "max_samples": 1}, "train"), (keys, "train+restval"), (keys, "valid"), home=tmp_path
    )
    assert (first["ids"], first["captions"], first["sizes"]) == ([0], [["first 0", "other"]], [[1, 2]])
    assert (added["ids"], added["sizes"]) == ([0, 1, 2], [[1, 2], [2, 2], [3, 2]])
    assert "train, restval, val" in wrong["error"].replace("'", "")
    assert not hub.requested("GET .*/val-0")


def test_what_is_wrong_with_a_data_set_on_the_hub_is_said(hub: HubServer) -> None:
    wrong = {
        ("lab/coco", "test"): r"Should be one of ['train', 'restval', 'val']",
        ("lab/none", "train"): "neither a local directory nor a data set on the Hub",
        ("lab/secret", "train"): "hf auth login",
        ("lab/gated", "train"): "hf auth login",
        ("lab/script", "train"): "loading script",
        ("not a name", "train"): "not a name",
    }
    answers = read(hub, *(({"dataset_name": name}, split) for name, split in wrong))
    for (name, _), expected, answer in zip(wrong, wrong.values(), answers, strict=True):
        assert expected in answer["error"], answer
        assert name in answer["error"]
    (missing,) = read(hub, ({"dataset_name": "lab/coco", "dataset_revision": "no-such-branch"}, "train"))
    assert "no-such-branch" in missing["error"]


def test_layouts_of_people_are_read_from_the_hub_too(hub: HubServer, tmp_path: Path) -> None:
    names = [
        "text_file_beside_each_picture",
        "imagefolder_with_a_line_for_each_caption",
        "metadata_above_the_splits",
        "flickr30k_results_csv",
        "folder_of_zips",
    ]
    records = make_records(4)
    for name in names:
        keys = LAYOUTS[name](records, tmp_path / name)
        hub.publish_dataset(f"lab/{name.lower()}", keys["dataset_name"])
    found = read(hub, *(({"dataset_name": f"lab/{name.lower()}"}, "train") for name in names))
    for name, read_rows in zip(names, found, strict=True):
        count = 1 if name == "text_file_beside_each_picture" else None
        assert read_rows.get("captions") == [each["captions"][:count] for each in records], (name, read_rows)
        assert read_rows["sizes"] == [[9, 7]] * 4
