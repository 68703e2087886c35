"""The paths of a data set lead to its own pictures: a user's own file may say more, a Hub data set may say nothing."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioners import draw_pictures
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hub_data import read as read_from_hub
from hub_server import HubServer

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.images import open_image
from blip_recipe.data.load import load_split
from blip_recipe.errors import RecipeError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture that is nobody's business, beside the folder of a data set."""
    (tmp_path / "set/pictures").mkdir(parents=True)
    draw_pictures(tmp_path / "set/pictures", 1)
    return draw_pictures(tmp_path / "private", 1)[0]


def coco(folder: Path, path: str) -> Path:
    content = {"images": [{"id": 1, "file_name": path}], "annotations": [{"image_id": 1, "caption": "x"}]}
    (folder / "captions.json").write_text(json.dumps(content))
    return folder / "captions.json"


def karpathy(folder: Path, path: str) -> Path:
    image = {"split": "train", "filename": path, "filepath": "pictures/..", "sentences": [{"raw": "x"}]}
    (folder / "dataset.json").write_text(json.dumps({"images": [image]}))
    return folder / "dataset.json"


def column_of_paths(folder: Path, path: str) -> Path:
    Dataset.from_dict({"url": [path], "text": ["x"]}).to_parquet(folder / "train.parquet")
    return folder


def column_of_structs(folder: Path, path: str) -> Path:
    features = Features({"image": ImageFeature(), "text": Value("string")})
    # `Dataset.to_parquet` would embed the picture.
    table = pa.table({"image": [{"bytes": None, "path": path}], "text": ["x"]}, schema=features.arrow_schema)
    pq.write_table(table, folder / "train.parquet")
    return folder


SOURCES = [coco, karpathy, column_of_paths, column_of_structs]
Write = Callable[[Path, str], Path]


def load(name: Path, **keys: Any) -> Dataset:
    return load_split(CaptionDataArguments(dataset_name=str(name), **keys), "train")


@pytest.mark.parametrize("write", SOURCES)
def test_a_relative_path_stays_in_its_folder(write: Write, secret: Path, tmp_path: Path) -> None:
    rows = load(write(tmp_path / "set", "pictures/../pictures/0000.png"))
    assert open_image(rows[0]["image"]).size == (40, 40)
    with pytest.raises(RecipeError, match=r"1 of 1 paths .*private/0000\.png"):
        load(write(tmp_path / "set", "../private/0000.png"))


@pytest.mark.parametrize("write", SOURCES)
def test_an_absolute_path_in_ones_own_file_is_ones_word_unless_image_root_says_where(
    write: Write, secret: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "set", str(secret))
    assert open_image(load(source)[0]["image"]).size == (40, 40)
    assert open_image(load(source, image_root=str(tmp_path))[0]["image"]).size == (40, 40)
    with pytest.raises(RecipeError, match=r"1 of 1 paths .*private/0000\.png.*Expected paths below"):
        load(source, image_root=str(tmp_path / "set"))


def test_links_that_a_user_made_are_followed(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "set/link.png").symlink_to(secret)
    assert open_image(load(coco(tmp_path / "set", "link.png"))[0]["image"]).size == (40, 40)


def test_an_imagefolder_cannot_name_a_file_outside(secret: Path, tmp_path: Path) -> None:
    for path in ("../private/0000.png", str(secret), f"file://{secret}"):
        line = json.dumps({"file_name": path, "text": "x"}) + "\n"
        (tmp_path / "set/metadata.jsonl").write_text(line)
        with pytest.raises(RecipeError, match=r"not allowed|none exists"):
            open_image(load(tmp_path / "set")[0]["image"])


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def test_a_data_set_on_the_hub_reads_its_own_files_and_none_of_this_machine(
    hub: HubServer, secret: Path, tmp_path: Path
) -> None:
    picture = secret.read_bytes()
    metadata = json.dumps({"file_name": "0.png", "text": "x"}).encode() + b"\n"
    hub.publish_dataset("lab/folder", {"train/0.png": picture, "train/metadata.jsonl": metadata})
    names = {"lab/paths": column_of_paths, "lab/structs": column_of_structs}
    for name, write in names.items():
        write(tmp_path / "set", str(secret))
        hub.publish_dataset(name, {"train.parquet": (tmp_path / "set/train.parquet").read_bytes()})
    Dataset.from_dict({"url": ["0000.png"], "text": ["x"]}).to_parquet(tmp_path / "named.parquet")
    hub.publish_dataset("lab/named", {"train.parquet": (tmp_path / "named.parquet").read_bytes()})
    requests: list[tuple[dict[str, Any], str]] = [
        *(({"dataset_name": "lab/folder", "streaming": streaming}, "train") for streaming in (False, True)),
        ({"dataset_name": "lab/named", "image_root": str(secret.parent)}, "train"),
        *(({"dataset_name": name, "streaming": streaming}, "train") for name in names for streaming in (False, True)),
        ({"dataset_name": "lab/paths", "image_root": str(tmp_path / "set")}, "train"),
    ]
    *allowed, one, two, three, four, five = read_from_hub(hub, *requests, home=tmp_path / "home")
    assert [answer.get("sizes", answer) for answer in allowed] == [[[40, 40]]] * 3
    for answer in (one, two, three, four, five):
        assert "1 of 1 paths are not allowed in this data set" in answer["error"]
        assert "private/0000.png" in answer["error"]


def test_names_in_archives_write_nothing_outside(secret: Path, tmp_path: Path) -> None:
    picture, folder = secret.read_bytes(), tmp_path / "set"
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for name, content in {"../../evil.png": picture, "../../evil.txt": b"x", "../../evil.json": b"{}"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    assert open_image(load(folder)[0]["image"]).size == (40, 40)
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    with zipfile.ZipFile(zipped / "train.zip", "w") as archive:
        archive.writestr("../../evil.png", picture)
        archive.writestr("a.png", picture)
        archive.writestr("metadata.jsonl", json.dumps({"file_name": "a.png", "text": "x"}) + "\n")
    assert open_image(load(zipped)[0]["image"]).size == (40, 40)
    assert not [path for path in tmp_path.rglob("*evil*") if path.is_file()]
