"""Every source and caption shape gives the same images and captions, and what is wrong with one is said plainly."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.captions import normalize_caption, read_captions
from blip_recipe.data.downloads import ALLOW_PRIVATE
from blip_recipe.data.images import open_image
from blip_recipe.data.load import load_split, load_splits, vocabulary_texts
from blip_recipe.errors import RecipeError

Records = list[dict[str, Any]]
Known = dict[str | int, tuple[list[str], bytes]]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` keeps what it prepares for these tests in a folder of theirs; a server on loopback has their files."""
    Files.root = tmp_path_factory.getbasetemp()
    with (
        pytest.MonkeyPatch.context() as patch,
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(Files.root))) as http,
    ):
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setenv(ALLOW_PRIVATE, "1")
        Files.address = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()
        http.shutdown()


class Files(SimpleHTTPRequestHandler):
    """The files of these tests."""

    root: Path
    address: str

    def log_message(self, *_: object) -> None:
        """Quiet."""


def make_records(count: int = 6, captions: int = 3) -> Records:
    """Pictures of their own and captions as people write them."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(buffer, "PNG")
        records.append(
            {
                "file_name": f"{number:03}.png",
                "image_id": 1000 - number,
                "captions": [f"Caption {k} of image {number}." for k in range(captions)],
                "content": buffer.getvalue(),
            }
        )
    return records


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest) -> Records:
    return make_records()


def write_pictures(records: Records, folder: Path) -> None:
    for record in records:
        path = folder / record["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record["content"])


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def facts(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys}


def picture(record: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": record["content"], "path": Path(record["file_name"]).name}


def write_parquet(folder: Path, rows: list[dict[str, Any]], **features: Any) -> None:
    """`rows` as `train-00000.parquet`; `features` names the types that cannot be guessed."""
    folder.mkdir(parents=True, exist_ok=True)
    table = Dataset.from_list(rows)
    if features:
        table = table.cast(Features({**table.features, **features}))
    table.to_parquet(folder / "train-00000.parquet")


# One writer a shape: it writes `records` into `folder` and returns the data keys of the recipe that reads them.
Writer = Callable[[Records, Path], dict[str, Any]]
WRITERS: dict[str, Writer] = {}


def shape(write: Writer) -> Writer:
    WRITERS[write.__name__] = write
    return write


@shape
def imagefolder_jsonl(records: Records, folder: Path) -> dict[str, Any]:
    write_pictures(records, folder / "train")
    write_jsonl(folder / "train/metadata.jsonl", [facts(each, "file_name", "image_id", "captions") for each in records])
    return {"dataset_name": folder, "image_id_column": "image_id"}


@shape
def imagefolder_csv(records: Records, folder: Path) -> dict[str, Any]:
    write_pictures(records, folder / "train")
    with (folder / "train/metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "image_id", "text"])
        writer.writerows([each["file_name"], each["image_id"], "\n".join(each["captions"])] for each in records)
    return {"dataset_name": folder, "image_id_column": "image_id"}


@shape
def parquet_with_pictures(records: Records, folder: Path) -> dict[str, Any]:
    rows = [{"image": picture(each), **facts(each, "image_id", "captions")} for each in records]
    write_parquet(folder, rows, image=ImageFeature())
    return {"dataset_name": folder, "image_id_column": "image_id"}


@shape
def parquet_with_untyped_structs(records: Records, folder: Path) -> dict[str, Any]:
    write_parquet(folder, [{"img": picture(each), **facts(each, "image_id", "captions")} for each in records])
    return {"dataset_name": folder, "image_id_column": "image_id", "image_column": "img"}


@shape
def parquet_with_bytes(records: Records, folder: Path) -> dict[str, Any]:
    write_parquet(folder, [{"image": each["content"], **facts(each, "image_id", "captions")} for each in records])
    return {"dataset_name": folder, "image_id_column": "image_id"}


@shape
def parquet_with_relative_paths(records: Records, folder: Path) -> dict[str, Any]:
    write_pictures(records, folder / "pictures")
    write_parquet(folder / "table", [facts(each, "file_name", "image_id", "captions") for each in records])
    return {"dataset_name": folder / "table", "image_id_column": "image_id", "image_root": folder / "pictures"}


@shape
def parquet_with_urls(records: Records, folder: Path) -> dict[str, Any]:
    write_pictures(records, folder / "pictures")
    path = (folder / "pictures").relative_to(Files.root)
    rows = [
        {"url": f"{Files.address}/{path}/{each['file_name']}", **facts(each, "image_id", "captions")}
        for each in records
    ]
    write_parquet(folder / "table", rows)
    return {"dataset_name": folder / "table", "image_id_column": "image_id", "image_root": "elsewhere"}


@shape
def numbered_columns(records: Records, folder: Path) -> dict[str, Any]:
    rows = [
        {"image": picture(each), "image_id": each["image_id"]}
        | {f"caption_{number}": text for number, text in enumerate(each["captions"])}
        for each in records
    ]
    write_parquet(folder, rows, image=ImageFeature())
    return {"dataset_name": folder, "image_id_column": "image_id"}


@shape
def named_columns(records: Records, folder: Path) -> dict[str, Any]:
    names = [f"words {number}" for number in range(len(records[0]["captions"]))]
    rows = [
        {"image": picture(each), "image_id": each["image_id"], **dict(zip(names, each["captions"], strict=True))}
        for each in records
    ]
    write_parquet(folder, rows, image=ImageFeature())
    return {"dataset_name": folder, "image_id_column": "image_id", "caption_column": names}


@shape
def list_of_structs(records: Records, folder: Path) -> dict[str, Any]:
    rows = [
        {
            "image": picture(each),
            "cocoid": each["image_id"],
            "sentences": [{"raw": text, "tokens": text.split(), "sentid": 7} for text in each["captions"]],
        }
        for each in records
    ]
    write_parquet(folder, rows, image=ImageFeature())
    return {"dataset_name": folder, "image_id_column": "cocoid"}


@shape
def long_format(records: Records, folder: Path) -> dict[str, Any]:
    rows = [
        {"image": picture(each), "image_id": each["image_id"], "caption": each["captions"][number]}
        for number in range(len(records[0]["captions"]))
        for each in records
    ]
    write_parquet(folder, rows, image=ImageFeature())
    return {"dataset_name": folder, "image_id_column": "image_id"}


@shape
def long_format_of_structs(records: Records, folder: Path) -> dict[str, Any]:
    rows = [
        {"image": picture(each), "cocoid": each["image_id"], "sentences": {"raw": text, "imgid": 3}}
        for each in records
        for text in each["captions"]
    ]
    write_parquet(folder, rows, image=ImageFeature())
    return {"dataset_name": folder, "image_id_column": "cocoid"}


@shape
def webdataset(records: Records, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for each in records:
            facts_file = json.dumps({"image_id": each["image_id"]}).encode()
            parts = {"png": each["content"], "txt": "\n".join(each["captions"]).encode(), "json": facts_file}
            for extension, content in parts.items():
                entry = tarfile.TarInfo(f"{each['image_id']}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return {"dataset_name": folder, "image_id_column": "__key__"}


@shape
def coco_json(records: Records, folder: Path) -> dict[str, Any]:
    write_pictures(records, folder / "pictures")
    content = {
        "info": {},
        "images": [{"id": each["image_id"], "file_name": each["file_name"]} for each in records],
        "annotations": [
            {"id": 1, "image_id": each["image_id"], "caption": each["captions"][number]}
            for number in range(len(records[0]["captions"]))
            for each in reversed(records)
        ],
    }
    (folder / "captions.json").write_text(json.dumps(content))
    return {"dataset_name": folder / "captions.json", "image_root": folder / "pictures"}


@shape
def karpathy_json(records: Records, folder: Path) -> dict[str, Any]:
    write_pictures(records, folder / "some2014")
    content = {
        "dataset": "coco",
        "images": [
            {
                "filepath": "some2014",
                "filename": each["file_name"],
                "imgid": number,
                "cocoid": each["image_id"],
                "split": "train",
                "sentences": [{"raw": text, "tokens": text.split()} for text in each["captions"]],
            }
            for number, each in enumerate(records)
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return {"dataset_name": folder / "dataset.json"}


def read(keys: dict[str, Any], split: str = "train", **options: Any) -> Dataset:
    keys = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    return load_split(CaptionDataArguments(**keys), split, **options)


def as_known(rows: Dataset) -> Known:
    """Captions and pixels by image id."""
    return {row["image_id"]: (row["captions"], open_image(row["image"]).tobytes()) for row in rows}


@pytest.mark.parametrize("name", WRITERS)
def test_every_shape_gives_the_same_images_and_captions(name: str, records: Records, tmp_path: Path) -> None:
    rows = read(WRITERS[name](records, tmp_path / "set"))
    assert rows.column_names == ["image", "image_id", "captions"]
    id_type: type = str if name == "webdataset" else int
    assert as_known(rows) == {
        id_type(each["image_id"]): (each["captions"], open_image(each["content"]).tobytes()) for each in records
    }
    assert list(rows["image_id"]) == [id_type(each["image_id"]) for each in records]


@pytest.fixture(scope="module")
def photos(shared: Path) -> Records:
    folder = shared / "data/photos/train"
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for record in records:
        record["content"] = (folder / record["file_name"]).read_bytes()
        # One caption has a line break inside, which text of a caption a line cannot say.
        record["captions"] = [" ".join(caption.splitlines()).strip() for caption in record["captions"]]
    return records


@pytest.mark.parametrize("name", WRITERS)
def test_photographs_in_every_shape_give_the_same_images_and_captions(
    name: str, photos: Records, tmp_path: Path
) -> None:
    known = as_known(read(WRITERS[name](photos, tmp_path / "set")))
    assert {int(image_id): captions for image_id, (captions, _) in known.items()} == {
        each["image_id"]: each["captions"] for each in photos
    }
    for each in photos[::20]:
        image_id = str(each["image_id"]) if name == "webdataset" else each["image_id"]
        assert known[image_id][1] == open_image(each["content"]).tobytes()


def test_the_annotations_of_the_photographs_say_what_their_folder_says(shared: Path) -> None:
    photos = shared / "data/photos"
    folder = as_known(read({"dataset_name": photos, "image_id_column": "image_id"}, "train+validation+test"))
    root = {"image_root": photos}
    assert len(folder) == 86
    assert as_known(read({"dataset_name": photos / "annotations/captions_coco.json", **root}, "test")) == folder
    karpathy = read({"dataset_name": photos / "annotations/dataset_karpathy.json", **root}, "train + val+test")
    assert as_known(karpathy) == folder


def test_without_ids_of_its_own_an_image_is_its_row_number(records: Records, tmp_path: Path) -> None:
    keys = WRITERS["parquet_with_pictures"](records, tmp_path)
    assert list(read({"dataset_name": keys["dataset_name"]})["image_id"]) == list(range(len(records)))


def test_captions_stay_as_written_but_stripped(tmp_path: Path) -> None:
    written = [" A Dog, running. ", "", "two\nlines", None]
    write_parquet(tmp_path, [{"url": "x.jpg", "captions": written}])
    assert list(read({"dataset_name": tmp_path})["captions"]) == [["A Dog, running.", "two\nlines"]]


def test_the_first_images_are_taken(records: Records, tmp_path: Path) -> None:
    keys = WRITERS["long_format"](records, tmp_path)
    assert list(read(keys, max_samples=2)["image_id"]) == [1000, 999]
    assert len(read(keys, max_samples=100)) == len(records)


def test_pictures_are_not_copied_into_another_file(records: Records, tmp_path: Path) -> None:
    keys = WRITERS["long_format"](records, tmp_path / "set")
    prepared = {file["filename"] for file in datasets.load_dataset(str(tmp_path / "set"), split="train").cache_files}
    assert {file["filename"] for file in read(keys).cache_files} == prepared


def test_a_changed_folder_is_read_anew(records: Records, tmp_path: Path) -> None:
    keys = WRITERS["imagefolder_jsonl"](records, tmp_path)
    read(keys)
    more = [{**records[0], "captions": ["changed"]}, *records[1:]]
    WRITERS["imagefolder_jsonl"](more, tmp_path)
    assert next(iter(read(keys)["captions"])) == ["changed"]


def test_odd_file_names_are_read_from_an_imagefolder(records: Records, tmp_path: Path) -> None:
    names = ["café_猫_фото.png", "name with  spaces & 🐈 #1%.png", "UPPER.PNG", "why?.png", "[b].png", "st*r.png"]
    renamed = [{**each, "file_name": name} for each, name in zip(records, names, strict=True)]
    known = as_known(read(imagefolder_jsonl(renamed, tmp_path)))
    assert [content for _, content in known.values()] == [open_image(each["content"]).tobytes() for each in records]


def test_karpathy_splits_can_be_summed_and_named_by_other_fields(records: Records, tmp_path: Path) -> None:
    keys = WRITERS["karpathy_json"](records, tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    for number, image in enumerate(content["images"]):
        image["split"] = ["restval", "train", "val"][number % 3]
        del image["cocoid"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert list(read(keys, "train+restval")["image_id"]) == [1, 4, 0, 3]
    assert list(read({**keys, "image_id_column": "filename"}, "val")["image_id"]) == ["002.png", "005.png"]


def test_the_splits_of_a_recipe_are_loaded_by_role(records: Records, tmp_path: Path) -> None:
    keys = WRITERS["coco_json"](records, tmp_path)
    arguments = CaptionDataArguments(
        dataset_name=str(keys["dataset_name"]),
        image_root=str(keys["image_root"]),
        eval_split="train[:2]",
        allow_shared_images=True,
        max_eval_samples=1,
    )
    splits = load_splits(arguments)
    assert {role: len(rows) for role, rows in splits.items()} == {"train": 6, "eval": 1}
    vocabulary = list(vocabulary_texts(splits["eval"], normalize=True))
    assert vocabulary[:2] == ["caption 0 of image 0", "caption 1 of image 0"]


def untouched(keys: dict[str, Any], folder: Path) -> None:
    """The data are right; the recipe is wrong."""


def empty_parquet(keys: dict[str, Any], folder: Path) -> None:
    features = Features({"image": Value("string"), "captions": List(Value("string"))})
    Dataset.from_dict({"image": [], "captions": []}, features=features).to_parquet(folder / "train-00000.parquet")


def with_columns(**columns: list[Any]) -> Callable[[dict[str, Any], Path], None]:
    def write(keys: dict[str, Any], folder: Path) -> None:
        Dataset.from_dict(columns).to_parquet(folder / "train-00000.parquet")

    return write


def with_file(name: str, content: str) -> Callable[[dict[str, Any], Path], None]:
    def write(keys: dict[str, Any], folder: Path) -> None:
        (folder / "train-00000.parquet").unlink()
        (folder / name).write_text(content)

    return write


WRONG: dict[str, tuple[Callable[[dict[str, Any], Path], None], dict[str, Any], str, str]] = {
    # What the data are, the keys of the recipe, the split, and what the message says.
    "unknown split": (untouched, {}, "valid", r"'valid'.*\['train'\]"),
    "unknown split in a sum": (untouched, {}, "train+more", r"more.*\['train'\]"),
    "no image column": (untouched, {"image_column": "photo"}, "train", "'photo'.*image, image_id, captions"),
    "no caption column": (untouched, {"caption_column": ["text"]}, "train", "'text'.*image, image_id, captions"),
    "no id column": (untouched, {"image_id_column": "id"}, "train", "'id'.*image, image_id, captions"),
    "captions are no text": (untouched, {"caption_column": ["image_id"]}, "train", "'image_id' holds.*text"),
    "pictures are no pictures": (untouched, {"image_column": "captions"}, "train", "'captions' holds.*pictures"),
    "ids are no ids": (untouched, {"image_id_column": "captions"}, "train", "'captions' holds.*integers"),
    "empty": (empty_parquet, {}, "train", "'train'.* is empty"),
    "a row without id": (
        with_columns(image=["a", "b"], text=["x", "y"], key=["k", None]),
        {"image_id_column": "key"},
        "train",
        "row 1 has no 'key'",
    ),
    "several columns of captions": (
        with_columns(image=["a"], text=["x"], caption_0=["y"], caption_1=["z"]),
        {},
        "train",
        "text, caption_0, caption_1.*caption_column",
    ),
    "no known column of captions": (
        with_columns(image=["a"], words=["x"]),
        {},
        "train",
        "caption_column.*image, words",
    ),
    "no known column of pictures": (with_columns(photo=["a"], text=["x"]), {}, "train", "image_column.*photo, text"),
    "a loading script": (with_file("set.py", "import datasets"), {}, "train", "loading script.*parquet"),
    "nothing in the directory": (with_file("notes.md", ""), {}, "train", "Expected an imagefolder"),
    "broken metadata": (with_file("metadata.jsonl", "{"), {}, "train", "1 of 1 lines are broken"),
    "metadata without names": (with_file("metadata.jsonl", '{"a": 1}\n\n[]\n'), {}, "train", r"lines 1, 3.*file_name"),
    "empty metadata": (with_file("metadata.csv", "file_name,text\n"), {}, "train", "is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_table_is_said(name: str, records: Records, tmp_path: Path) -> None:
    spoil, changes, split, expected = WRONG[name]
    folder = tmp_path / "set"
    keys = {**parquet_with_pictures(records, folder), "image_id_column": None, **changes}
    spoil(keys, folder)
    with pytest.raises(RecipeError, match=expected):
        read(keys, split)


WRONG_FILES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    # The file's format, changes to its content, keys of the recipe, the split, and what the message says.
    "unknown split": ("karpathy_json", {}, {}, "train+test", "'test'.*: its splits are train"),
    "no images": ("coco_json", {"images": None}, {}, "train", "no list of 'images'.*COCO"),
    "instances instead of captions": (
        "coco_json",
        {"annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]},
        {},
        "train",
        "'caption'.*image_id, bbox",
    ),
    "no sentences": (
        "karpathy_json",
        {"images": [{"filename": "000.png", "split": "train"}]},
        {},
        "train",
        "no known column of captions: set caption_column to one of filename, split",
    ),
    "neither format": ("karpathy_json", {"images": [{"url": "a"}]}, {}, "train", "or Karpathy JSON"),
    "no such id": ("coco_json", {}, {"image_id_column": "key"}, "train", "'key'.*id, file_name"),
    "no such image field": ("coco_json", {}, {"image_column": "url"}, "train", "'url'.*id, file_name"),
    "wrong image_root": ("coco_json", {}, {"image_root": "nowhere"}, "val", "nowhere/000.png: set image_root"),
    "empty": ("coco_json", {"images": []}, {}, "test", "is empty"),
    "ids that are lists": (
        "karpathy_json",
        {"images": [{"filename": "000.png", "filepath": "some2014", "split": "train", "cocoid": [], "sentences": []}]},
        {},
        "train",
        r"column 'cocoid' holds List.*: expected integers or text as ids",
    ),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_what_is_wrong_with_a_captions_file_is_said(name: str, records: Records, tmp_path: Path) -> None:
    format_name, changes, more_keys, split, expected = WRONG_FILES[name]
    keys = {**WRITERS[format_name](records, tmp_path), **more_keys}
    content = json.loads(keys["dataset_name"].read_text())
    keys["dataset_name"].write_text(json.dumps(content | changes))
    with pytest.raises(RecipeError, match=expected):
        read(keys, split)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_file_that_is_not_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(RecipeError, match=r"captions\.json.*Expected a list of objects"):
        read({"dataset_name": tmp_path / "captions.json"})


def test_a_path_that_is_not_there_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(RecipeError, match=r"Did you mean .*photos"):
        read({"dataset_name": tmp_path / "photso"})
    with pytest.raises(RecipeError, match="has no entirely"):
        read({"dataset_name": tmp_path / "entirely" / "else.json"})


captions_text = st.text(min_size=1).map(lambda text: " ".join(text.split())).filter(bool)


@given(st.lists(captions_text, min_size=1))
def test_captions_are_the_same_in_every_shape(captions: list[str]) -> None:
    shapes: list[Any] = [
        "\n".join(captions),
        "\r\n".join(["", *captions, " "]),
        captions,
        [*captions, None, "  "],
        [{"raw": caption, "tokens": caption.split()} for caption in captions],
        {"caption": captions, "id": 3},
        [{"text": caption} for caption in captions],
    ]
    for cell in shapes:
        assert read_captions(cell) == captions


@given(st.text())
def test_a_normalised_caption_is_clean_short_and_stays_so(text: str) -> None:
    clean = normalize_caption(text)
    assert not set('.!"()*#:;~') & set(clean)
    assert clean == " ".join(clean.split())
    assert len(clean.split()) <= 30
    assert normalize_caption(clean) == clean


def test_captions_are_normalised_as_the_original_does() -> None:
    assert normalize_caption('  A "Big"  dog (brown); runs, fast!\n') == "a big dog brown runs, fast"
    assert normalize_caption("word " * 40) == " ".join(["word"] * 30)
