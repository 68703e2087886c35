"""Write captioned pictures in the layouts in which people keep them: a function for each, in the table `LAYOUTS`."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature

Records = list[dict[str, Any]]
"""Pictures with `file_name`, `image_id`, `captions` and `content`, the encoded file."""

Keys = dict[str, Any]
Layout = Callable[[Records, Path], Keys]

LAYOUTS: dict[str, Layout] = {}
"""Each writes pictures into a folder and returns the data keys of the recipe that reads them."""

ONE_CAPTION: set[str] = set()
"""Layouts that hold the first caption of each picture only."""


def layout(write: Layout) -> Layout:
    LAYOUTS[write.__name__] = write
    return write


def one_caption(write: Layout) -> Layout:
    ONE_CAPTION.add(write.__name__)
    return layout(write)


def write_pictures(records: Records, folder: Path) -> None:
    for record in records:
        path = folder / record["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record["content"])


def pairs(records: Records, folder: str = "") -> Iterable[tuple[str, str]]:
    """The name and a caption of each picture, once for each caption."""
    return [(folder + each["file_name"], caption) for each in records for caption in each["captions"]]


def write_csv(path: Path, rows: Iterable[Iterable[Any]], encoding: str = "utf-8", **dialect: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, **dialect).writerows(rows)


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")


def write_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))


@one_caption
def text_file_beside_each_picture(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    for each in records:
        (folder / each["file_name"]).with_suffix(".txt").write_text(each["captions"][0] + "\n")
    return {"dataset_name": folder}


@one_caption
def caption_file_beside_each_picture(records: Records, folder: Path) -> Keys:
    nested = [{**each, "file_name": f"10_cats/{each['file_name']}"} for each in records]
    write_pictures(nested, folder)
    for each in nested:
        (folder / each["file_name"]).with_suffix(".caption").write_text(each["captions"][0])
    return {"dataset_name": folder}


@layout
def caption_in_each_line_of_text_files(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    for each in records:
        (folder / each["file_name"]).with_suffix(".txt").write_text("\n".join(each["captions"]) + "\n")
    return {"dataset_name": folder, "caption_lines": True}


@layout
def csv_with_quotes(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_csv(folder / "list.csv", [("file_name", "caption"), *pairs(records)], quoting=csv.QUOTE_ALL)
    return {"dataset_name": folder / "list.csv"}


@layout
def csv_with_a_byte_order_mark(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "images")
    write_csv(folder / "list.csv", [("image", "text"), *pairs(records)], encoding="utf-8-sig")
    return {"dataset_name": folder / "list.csv", "image_root": folder / "images"}


@layout
def csv_in_utf_16(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_csv(folder / "list.csv", [("image", "text"), *pairs(records)], encoding="utf-16")
    return {"dataset_name": folder / "list.csv"}


@layout
def csv_without_names_of_columns(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_csv(folder / "list.csv", pairs(records))
    return {"dataset_name": folder / "list.csv"}


@layout
def csv_with_semicolons(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_csv(folder / "list.csv", [("filename", "description"), *pairs(records)], delimiter=";")
    return {"dataset_name": folder / "list.csv"}


@layout
def csv_with_commas_in_bare_captions(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_lines(folder / "list.csv", ["image,caption", *(f"{name},{caption}" for name, caption in pairs(records))])
    return {"dataset_name": folder / "list.csv"}


@layout
def csv_with_a_list_in_a_cell(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    rows = [(each["file_name"], each["image_id"], repr(each["captions"])) for each in records]
    write_csv(folder / "list.csv", [("image", "id", "captions"), *rows])
    return {"dataset_name": folder / "list.csv", "image_id_column": "id"}


@layout
def csv_with_numbered_columns(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    names = [f"Caption {number}" for number in range(len(records[0]["captions"]))]
    write_csv(folder / "list.csv", [("Image", *names), *((each["file_name"], *each["captions"]) for each in records)])
    return {"dataset_name": folder / "list.csv"}


@layout
def tsv(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_lines(folder / "list.tsv", ["image_file\tcaption", *("\t".join(pair) for pair in pairs(records))])
    return {"dataset_name": folder / "list.tsv"}


@layout
def windows_paths(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "some pictures")
    write_csv(folder / "list.csv", [("image_path", "caption"), *pairs(records, "some pictures\\")])
    return {"dataset_name": folder / "list.csv"}


@layout
def names_of_columns_in_capitals(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_csv(folder / "list.csv", [("Image Name", "CAPTION"), *pairs(records)])
    return {"dataset_name": folder / "list.csv"}


@layout
def json_lines(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_lines(
        folder / "list.jsonl", [{"filename": each["file_name"], "captions": each["captions"]} for each in records]
    )
    return {"dataset_name": folder / "list.jsonl"}


@layout
def json_lines_named_json(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_lines(folder / "list.json", [{"image": each["file_name"], "text": each["captions"]} for each in records])
    return {"dataset_name": folder / "list.json"}


@layout
def json_list_of_blip(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "val2014")
    rows = [
        {"caption": caption, "image": f"val2014/{each['file_name']}", "image_id": f"coco_{each['image_id']}"}
        for each in records
        for caption in each["captions"]
    ]
    (folder / "coco_karpathy_train.json").write_text(json.dumps(rows))
    return {"dataset_name": folder / "coco_karpathy_train.json"}


@layout
def json_list_of_blip_with_all_captions(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "val2014")
    rows = [{"image": f"val2014/{each['file_name']}", "caption": each["captions"]} for each in records]
    (folder / "coco_karpathy_val.json").write_text(json.dumps(rows))
    return {"dataset_name": folder / "coco_karpathy_val.json"}


@layout
def json_captions_by_picture(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    (folder / "all.json").write_text(json.dumps({each["file_name"]: each["captions"] for each in records}))
    return {"dataset_name": folder / "all.json"}


@layout
def json_list_under_data(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    rows = [{"image_path": name, "caption": caption} for name, caption in pairs(records)]
    (folder / "all.json").write_text(json.dumps({"dataset_type": "train", "data": rows}))
    return {"dataset_name": folder / "all.json"}


@one_caption
def conversations_of_llava(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    rows = [
        {
            "id": str(each["image_id"]),
            "image": each["file_name"],
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe the picture."},
                {"from": "gpt", "value": each["captions"][0]},
            ],
        }
        for each in records
    ]
    (folder / "llava.json").write_text(json.dumps(rows))
    return {"dataset_name": folder / "llava.json"}


@layout
def flickr8k_captions_txt(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "Images")
    write_csv(folder / "captions.txt", [("image", "caption"), *pairs(records)])
    return {"dataset_name": folder}


@layout
def flickr8k_token_txt(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "Flicker8k_Dataset")
    lines = [f"{each['file_name']}#{n}\t{text}" for each in records for n, text in enumerate(each["captions"])]
    write_lines(folder / "Flickr8k.token.txt", lines)
    return {"dataset_name": folder / "Flickr8k.token.txt", "image_root": folder / "Flicker8k_Dataset"}


@layout
def flickr30k_results_csv(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "flickr30k_images")
    lines = [f"{each['file_name']}| {n}| {text}" for each in records for n, text in enumerate(each["captions"])]
    write_lines(folder / "results.csv", ["image_name| comment_number| comment", *lines])
    return {"dataset_name": folder}


@layout
def parquet_file(records: Records, folder: Path) -> Keys:
    folder.mkdir(parents=True)
    rows = [
        {"image": {"bytes": each["content"], "path": None}, "caption": caption}
        for each in records
        for caption in each["captions"]
    ]
    Dataset.from_list(rows).to_parquet(folder / "some.parquet")
    return {"dataset_name": folder / "some.parquet"}


def _dataset(records: Records) -> Dataset:
    features = Features({"image": ImageFeature(), "number": Value("int64"), "captions": List(Value("string"))})
    rows = [
        {
            "image": {"bytes": each["content"], "path": None},
            "number": each["image_id"],
            "captions": each["captions"],
        }
        for each in records
    ]
    return Dataset.from_list(rows, features=features)


@layout
def saved_to_disk(records: Records, folder: Path) -> Keys:
    _dataset(records).save_to_disk(folder)
    return {"dataset_name": folder}


@layout
def saved_to_disk_with_splits(records: Records, folder: Path) -> Keys:
    splits = {"train": _dataset(records), "test": _dataset(records[:1]).map(lambda _: {"captions": ["no"]})}
    DatasetDict(splits).save_to_disk(folder)
    return {"dataset_name": folder, "image_id_column": "number"}


@one_caption
def json_lines_of_the_caption_command(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_lines(
        folder / "captions.jsonl",
        [{"image": str(folder / each["file_name"]), "caption": each["captions"][0]} for each in records],
    )
    return {"dataset_name": folder / "captions.jsonl"}


@one_caption
def csv_of_the_caption_command(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    rows = [(str(folder / each["file_name"]), each["captions"][0], "") for each in records]
    write_csv(folder / "captions.csv", [("image", "caption", "error"), *rows])
    return {"dataset_name": folder / "captions.csv"}


@layout
def zip_of_an_imagefolder(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "zipped/train")
    write_lines(
        folder / "zipped/train/metadata.jsonl",
        [{"file_name": each["file_name"], "captions": each["captions"]} for each in records],
    )
    write_zip(folder / "photos.zip", folder / "zipped")
    return {"dataset_name": folder / "photos.zip"}


@one_caption
def zip_of_pictures_and_text_files(records: Records, folder: Path) -> Keys:
    text_file_beside_each_picture(records, folder / "zipped/photos")
    write_zip(folder / "photos.zip", folder / "zipped")
    return {"dataset_name": folder / "photos.zip"}


@layout
def folder_of_zips(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "pictures")
    write_csv(folder / "texts/captions.csv", [("image", "caption"), *pairs(records)])
    (folder / "set").mkdir()
    write_zip(folder / "set/images.zip", folder / "pictures")
    write_zip(folder / "set/captions.zip", folder / "texts")
    return {"dataset_name": folder / "set"}


@layout
def pictures_and_a_csv_for_each_split(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "images")
    write_csv(folder / "train.csv", [("image", "caption"), *pairs(records)])
    write_csv(folder / "val.csv", [("image", "caption", "note"), (records[0]["file_name"], "no", "x")])
    return {"dataset_name": folder}


@layout
def metadata_above_the_splits(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "train")
    write_pictures(records[:1], folder / "val")
    rows = [{"file_name": f"train/{each['file_name']}", "text": each["captions"]} for each in records]
    write_lines(folder / "metadata.jsonl", [*rows, {"file_name": f"val/{records[0]['file_name']}", "text": ["no"]}])
    return {"dataset_name": folder}


@layout
def splits_with_other_columns(records: Records, folder: Path) -> Keys:
    rows = [{"file_name": each["file_name"], "text": each["captions"], "licence": 4} for each in records]
    write_pictures(records, folder / "train")
    write_lines(folder / "train/metadata.jsonl", rows)
    write_pictures(records[:1], folder / "test")
    write_lines(folder / "test/metadata.jsonl", [{"file_name": records[0]["file_name"], "text": "no", "place": "Rome"}])
    return {"dataset_name": folder}


@layout
def imagefolder_with_a_line_for_each_caption(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder / "train")
    rows = [{"file_name": name, "caption": caption} for name, caption in pairs(records)]
    write_lines(folder / "train/metadata.jsonl", rows)
    return {"dataset_name": folder}


@layout
def imagefolder_csv_with_a_line_for_each_caption(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    write_csv(folder / "metadata.csv", [("file_name", "caption"), *pairs(records)])
    return {"dataset_name": folder, "image_id_column": "file_name"}


@layout
def imagefolder_with_parquet(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    rows = [{"file_name": each["file_name"], "captions": each["captions"]} for each in records]
    Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")
    return {"dataset_name": folder}


@layout
def coco_with_padded_ids(records: Records, folder: Path) -> Keys:
    write_pictures(records, folder)
    images = [{"id": f"{each['image_id']:012}", "file_name": each["file_name"]} for each in records]
    texts = [{"image_id": each["image_id"], "caption": text} for each in records for text in each["captions"]]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": texts}))
    return {"dataset_name": folder / "coco.json"}


@layout
def pictures_in_base64(records: Records, folder: Path) -> Keys:
    folder.mkdir(parents=True)
    rows = [{"image": base64.b64encode(each["content"]).decode(), "captions": each["captions"]} for each in records]
    write_lines(folder / "all.jsonl", rows)
    return {"dataset_name": folder / "all.jsonl"}


@layout
def pictures_in_data_urls(records: Records, folder: Path) -> Keys:
    folder.mkdir(parents=True)
    rows = [
        {"image": f"data:image/jpeg;base64,{base64.b64encode(each['content']).decode()}", "text": each["captions"]}
        for each in records
    ]
    (folder / "all.json").write_text(json.dumps(rows))
    return {"dataset_name": folder / "all.json"}


@one_caption
def class_folders(records: Records, folder: Path) -> Keys:
    write_pictures([{**each, "file_name": f"{each['captions'][0]}/{each['file_name']}"} for each in records], folder)
    return {"dataset_name": folder, "caption_column": ["label"]}


def picture(number: int) -> bytes:
    """A small picture that differs for each number."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (number % 256, number // 256, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def make_records(count: int = 6, captions: int = 3) -> Records:
    """Pictures with captions that hold commas and apostrophes."""
    return [
        {
            "file_name": f"{number:03}.png",
            "image_id": 100 - number,
            "captions": [f"A dog's picture, number {number}.{k}" for k in range(captions)],
            "content": picture(number),
        }
        for number in range(count)
    ]
