"""People's data are read as they are, whatever their layout, and what is wrong or left out is said."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from captioners import save_captioner
from datasets import Dataset
from layouts import (
    LAYOUTS,
    ONE_CAPTION,
    Keys,
    Records,
    make_records,
    pairs,
    picture,
    write_csv,
    write_lines,
    write_pictures,
)

from blip_recipe import CaptionTrainer, CaptionTrainingArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.checks import check_splits
from blip_recipe.data.images import read_content
from blip_recipe.data.load import load_split, load_splits
from blip_recipe.errors import RecipeError


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` keeps what it prepares for these tests in a folder of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", tmp_path_factory.mktemp("extracted"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


def arguments_of(keys: Keys, **more: Any) -> CaptionDataArguments:
    values: dict[str, Any] = {key: str(v) if isinstance(v, Path) else v for key, v in (keys | more).items()}
    return CaptionDataArguments(**values)


def read(keys: Keys, split: str = "train") -> Dataset:
    return load_split(arguments_of(keys), split)


def as_known(rows: Dataset) -> dict[bytes, list[str]]:
    """The captions of each picture, by its encoded file."""
    return {read_content(row["image"]): row["captions"] for row in rows}


def expected(records: Records, name: str) -> dict[bytes, list[str]]:
    return {each["content"]: each["captions"][: 1 if name in ONE_CAPTION else None] for each in records}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_images_and_captions(name: str, tmp_path: Path) -> None:
    records = make_records()
    rows = read(LAYOUTS[name](records, tmp_path / "set"))
    assert as_known(rows) == expected(records, name)
    assert len(rows) == len(records)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_can_be_cut_into_slices_of_images(name: str, tmp_path: Path) -> None:
    records = make_records()
    keys = LAYOUTS[name](records, tmp_path / "set")
    first, rest = (as_known(read(keys, split)) for split in ("train[:50%]", "train[50%:]"))
    assert len(first) == len(rest) == 3
    assert first | rest == expected(records, name)


Write = Callable[[Path], Keys]
MISTAKES: dict[str, tuple[Write, str]] = {}
"""Data that cannot be read: how they are written, and what the error says."""
TOLD: dict[str, tuple[Write, int, str]] = {}
"""Data that are read in part: how they are written, the number of images read, and what the warning says."""


def mistake(message: str) -> Callable[[Write], Write]:
    def register(write: Write) -> Write:
        MISTAKES[write.__name__] = (write, message)
        return write

    return register


def told(images: int, message: str) -> Callable[[Write], Write]:
    def register(write: Write) -> Write:
        TOLD[write.__name__] = (write, images, message)
        return write

    return register


def file_with(content: str | bytes, name: str) -> Write:
    """A file with this content beside three pictures."""

    def write(folder: Path) -> Keys:
        write_pictures(make_records(3), folder)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return {"dataset_name": folder / name}

    return write


BROKEN_FILES: list[tuple[str, str | bytes, str, str]] = [
    ("an empty csv", "", "a.csv", "a.csv is empty: expected a row for each caption"),
    ("a csv with one column", "000.png\n001.png\n", "a.csv", "has a single column, such as '000.png'"),
    ("a csv without captions", "000.png,001.png\n", "a.csv", "has pictures but no captions"),
    ("a csv in latin-1", "image,caption\n000.png,caf\xe9\n".encode("latin-1"), "a.csv", "is not text in UTF-8"),
    (
        "a quote that is never closed",
        'image,caption\n000.png,"a\n' + "x,y\n" * 200,
        "a.csv",
        "line 2: a quote is never",
    ),
    (
        "a csv with unknown columns",
        "pic,words\n000.png,a dog\n",
        "a.csv",
        "no known column of pictures: set image_column",
    ),
    (
        "a csv with two columns of captions",
        "image,text,caption\n000.png,a,b\n",
        "a.csv",
        "several columns that could be",
    ),
    ("a list of names", '["000.png"]', "a.json", r"items that are not objects \(numbers 0\)"),
    ("an empty list", "[]", "a.json", "has no items"),
    ("a number", "3", "a.json", "has no list of 'images'. Expected"),
    ("broken json", '{"images": [', "a.json", "cannot be read as JSON"),
    ("broken json lines", '{"image": "000.png", "text": "a"}\n{"image"\n', "a.jsonl", "1 lines that are not JSON"),
    ("no json lines", "", "a.jsonl", "has no items"),
    ("a broken zip", "PK", "a.zip", "cannot be extracted: File is not a zip file"),
    ("another kind of file", "a dog", "a.docx", "is of no known kind: expected a file that ends in .csv"),
    ("pictures that are elsewhere", "image,caption\nx/9.png,a\n", "a.csv", "none exists, such as .*: set image_root"),
    ("a path outside", "image,caption\n../../9.png,a\n", "a.csv", "paths are not allowed in this data set"),
    (
        "two images with one id",
        '{"images": [{"id": 7, "file_name": "000.png"}, {"id": "007", "file_name": "001.png"}], "annotations": []}',
        "a.json",
        "two images share the id 007, .*000.png.*001.png",
    ),
]
"""What is wrong, the content of a file, its name, and what the error says."""
MISTAKES |= {title: (file_with(content, name), message) for title, content, name, message in BROKEN_FILES}


@mistake("has no known column of captions: set caption_column to one of image")
def pictures_without_texts(folder: Path) -> Keys:
    write_pictures(make_records(), folder)
    return {"dataset_name": folder}


@mistake("no known column of captions: set caption_column to one of image, label")
def class_folders_without_a_wish(folder: Path) -> Keys:
    return {"dataset_name": LAYOUTS["class_folders"](make_records(), folder)["dataset_name"]}


@mistake("has several files that may list captions: a.csv, b.csv. Set dataset_name to one of them, and image_root")
def several_lists(folder: Path) -> Keys:
    write_pictures(make_records(), folder)
    for name in ("a.csv", "b.csv"):
        write_csv(folder / name, [("image", "caption"), *pairs(make_records())])
    return {"dataset_name": folder}


@mistake("metadata.csv has no column file_name: .* Its columns are image, caption")
def metadata_without_file_names(folder: Path) -> Keys:
    write_pictures(make_records(), folder)
    write_csv(folder / "metadata.csv", [("image", "caption"), *pairs(make_records())])
    return {"dataset_name": folder}


@mistake("There is no file or directory .*photos.zip. Did you mean .*photo.zip")
def a_file_that_is_not_there(folder: Path) -> Keys:
    (folder / "photo.zip").parent.mkdir(parents=True)
    (folder / "photo.zip").touch()
    return {"dataset_name": f"{folder}/photos.zip"}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_error(name: str, tmp_path: Path) -> None:
    write, message = MISTAKES[name]
    (tmp_path / "set").mkdir() if write.__name__ == "write" else None
    with pytest.raises(RecipeError, match=message) as raised:
        read(write(tmp_path / "set"))
    assert len(str(raised.value)) < 1000


@told(6, r"1 pictures are not in metadata.jsonl and are left out: more.png")
def pictures_that_metadata_do_not_list(folder: Path) -> Keys:
    keys = LAYOUTS["metadata_above_the_splits"](make_records(), folder)
    (folder / "more.png").write_bytes(picture(99))
    return keys


@told(4, r"2 pictures have no text file beside them and are left out: 000.png, 001.png")
def pictures_without_a_text_file(folder: Path) -> Keys:
    keys = LAYOUTS["text_file_beside_each_picture"](make_records(), folder)
    for name in ("000.txt", "001.txt"):
        (folder / name).unlink()
    return keys


@told(6, r"1 files are not read, because the text files beside the pictures are: list.csv")
def a_list_beside_text_files(folder: Path) -> Keys:
    keys = LAYOUTS["text_file_beside_each_picture"](make_records(), folder)
    write_csv(folder / "list.csv", pairs(make_records()))
    return keys


@told(6, r"6 text files beside pictures are not read, because there is metadata: 000.txt, 001.txt, 002.txt, …")
def text_files_beside_metadata(folder: Path) -> Keys:
    LAYOUTS["text_file_beside_each_picture"](make_records(), folder)
    return LAYOUTS["imagefolder_csv_with_a_line_for_each_caption"](make_records(), folder)


@told(2, r"1 annotations belong to images that it does not list, and are left out; their image_id: 9")
def annotations_of_unknown_images(folder: Path) -> Keys:
    write_pictures(make_records(2), folder)
    content = {
        "images": [{"id": number, "file_name": f"{number:03}.png"} for number in range(2)],
        "annotations": [{"image_id": number, "caption": "a dog"} for number in (0, 1, 9)],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return {"dataset_name": folder / "coco.json"}


@told(2, r"1 images are listed again with the same fields, and are used once; their id: 1")
def an_image_that_is_listed_twice(folder: Path) -> Keys:
    write_pictures(make_records(2), folder)
    content = {
        "images": [{"id": number, "file_name": f"{number:03}.png"} for number in (0, 1, 1)],
        "annotations": [{"image_id": number, "caption": "a dog"} for number in (0, 1)],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return {"dataset_name": folder / "coco.json"}


@told(5, r"1 lines do not have the columns image, number, caption and are left out; their numbers: 2")
def a_line_that_is_cut(folder: Path) -> Keys:
    write_pictures(make_records(), folder)
    lines = [f"{name}|1|{caption}" for name, caption in pairs(make_records())]
    write_lines(folder / "list.csv", ["image|number|caption", "000.png|1 a dog", *lines[3:]])
    return {"dataset_name": folder / "list.csv"}


@told(1, r"2 pictures had no caption but an error and are left out: 001.png, 002.png")
def errors_of_the_caption_command(folder: Path) -> Keys:
    write_pictures(make_records(3), folder)
    rows = [{"image": "000.png", "caption": "a dog"}, *({"image": f"00{n}.png", "error": "broken"} for n in (1, 2))]
    write_lines(folder / "captions.jsonl", rows)
    return {"dataset_name": folder / "captions.jsonl"}


@told(6, r"1 pictures are not in list.csv and are left out: extra.png")
def pictures_that_a_list_does_not_name(folder: Path) -> Keys:
    keys = LAYOUTS["csv_with_quotes"](make_records(), folder)
    (folder / "extra.png").write_bytes(picture(98))
    return keys | {"dataset_name": folder}


@pytest.mark.parametrize("name", TOLD)
def test_what_is_left_out_is_told_with_a_number_and_an_example(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, images, message = TOLD[name]
    with caplog.at_level(logging.WARNING, "blip_recipe"):
        rows = read(write(tmp_path / "set"))
    assert len(rows) == images
    (record,) = caplog.records
    assert message in record.getMessage()


def test_there_are_many() -> None:
    assert len(LAYOUTS) + len(MISTAKES) + len(TOLD) >= 60


SHARED: dict[str, tuple[Write, dict[str, Any], str]] = {}
"""Data whose roles share images: how they are written, the recipe's splits, and what the error says."""


def test_text_files_of_several_lines_are_one_caption_unless_lines_are_asked_for(tmp_path: Path) -> None:
    keys = LAYOUTS["caption_in_each_line_of_text_files"](make_records(1), tmp_path)
    joined = " ".join(make_records(1)[0]["captions"])
    assert list(read(keys | {"caption_lines": False})["captions"]) == [[joined]]


def test_file_names_can_be_the_ids(tmp_path: Path) -> None:
    keys = LAYOUTS["imagefolder_with_a_line_for_each_caption"](make_records(2), tmp_path)
    assert list(read(keys | {"image_id_column": "file_name"})["image_id"]) == ["000.png", "001.png"]


def test_pictures_without_ids_have_the_number_of_their_image(tmp_path: Path) -> None:
    keys = LAYOUTS["csv_with_quotes"](make_records(3), tmp_path)
    assert list(read(keys)["image_id"]) == [0, 1, 2]


@pytest.mark.parametrize(
    "name", ["saved_to_disk_with_splits", "metadata_above_the_splits", "splits_with_other_columns"]
)
def test_splits_are_told_apart(name: str, tmp_path: Path) -> None:
    keys = LAYOUTS[name](make_records(), tmp_path / "set")
    other = "validation" if name == "metadata_above_the_splits" else "test"
    assert list(read(keys, other)["captions"]) == [["no"]]
    with pytest.raises(
        RecipeError, match=f"has no split 'nowhere': its splits are {', '.join(sorted(('train', other)))}"
    ):
        read(keys, "nowhere")


def copies_in_two_folders(folder: Path) -> Keys:
    records = make_records()
    for split, part in {"train": records, "test": [{**records[4], "file_name": "copy.png"}]}.items():
        write_pictures(part, folder / split)
        rows = [{"file_name": each["file_name"], "captions": each["captions"]} for each in part]
        write_lines(folder / split / "metadata.jsonl", rows)
    return {"dataset_name": folder}


def one_coco_file(folder: Path) -> Keys:
    return LAYOUTS["coco_with_padded_ids"](make_records(), folder)


@pytest.mark.parametrize(
    ("write", "splits", "message"),
    [
        (one_coco_file, {"test_split": "test"}, r"6 of 6 images of test \('test'\) are also in train \('train'\)"),
        (one_coco_file, {"train_split": "train[:80%]", "eval_split": "train[50%:]"}, "2 of 3 images of eval"),
        (one_coco_file, {"eval_split": "train[:2]", "test_split": "train[:2]", "train_split": "train[2:]"}, "2 of 2"),
        (copies_in_two_folders, {"test_split": "test"}, "1 of 1 images .*: for example, image 0 of test is image 4 of"),
    ],
)
def test_roles_that_share_images_are_an_error_unless_it_is_meant(
    write: Write, splits: dict[str, str], message: str, tmp_path: Path
) -> None:
    keys = write(tmp_path / "set") | splits
    arguments = arguments_of(keys)
    with pytest.raises(RecipeError, match=message):
        check_splits(load_splits(arguments), arguments)
    meant = arguments_of(keys, allow_shared_images=True)
    checked = check_splits(load_splits(meant), meant)
    assert len(checked.shared) == 1
    assert "are also images of" in checked.shared[0]


def test_slices_of_a_file_without_splits_share_nothing(tmp_path: Path) -> None:
    arguments = arguments_of(one_coco_file(tmp_path / "set"), train_split="train[:80%]", test_split="train[80%:]")
    splits = load_splits(arguments)
    assert {role: len(rows) for role, rows in splits.items()} == {"train": 5, "test": 1}
    assert check_splits(splits, arguments).shared == []


def held_out_names(folder: Path, count: int, **keys: Any) -> dict[str, set[bytes]]:
    """The pictures of each role of a folder of `count` pictures."""
    records = make_records(count, captions=1)
    source = LAYOUTS["text_file_beside_each_picture"](records, folder)
    splits = load_splits(arguments_of(source, **keys))
    return {role: {read_content(row["image"]) for row in rows} for role, rows in splits.items()}


def test_held_out_images_stay_held_out_when_data_are_added(tmp_path: Path) -> None:
    shares = {"validation_fraction": 0.1, "test_fraction": 0.2}
    few, many = (held_out_names(tmp_path / str(count), count, **shares) for count in (300, 600))
    known = {each["content"] for each in make_records(300)}
    assert few == {role: found & known for role, found in many.items()}
    assert sum(map(len, many.values())) == 600
    assert 40 <= len(many["eval"]) <= 80
    assert 90 <= len(many["test"]) <= 150
    only_test = held_out_names(tmp_path / "600", 600, test_fraction=0.2)
    assert only_test["test"] == many["test"], "a share does not depend on the other"
    assert held_out_names(tmp_path / "600", 600, test_fraction=0.2, split_seed=1)["test"] != many["test"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"test_fraction": 0.5, "test_split": "test"}, "test_fraction and test_split .'test'. are both given"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0: expected more than 0 and less than 1"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave no training images: expected a sum below 1"),
        ({"test_fraction": 0.001}, "Of the 6 images of split 'train', the shares .test 0.001. give none to 'test'"),
    ],
)
def test_shares_that_cannot_be_held_out_are_errors(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        held_out_names(tmp_path, 6, **keys)


def test_cells_of_any_quoting_come_back(tmp_path: Path) -> None:
    write_pictures(make_records(1), tmp_path)
    odd = ['a "big" dog', "two\ttabs", "semi; colon", "it's, 'so'", "ends with \\", "[not a list]", "['a' dog]"]
    write_csv(tmp_path / "a.csv", [("image", "caption"), *(("000.png", each) for each in odd)], quoting=csv.QUOTE_ALL)
    assert list(read({"dataset_name": tmp_path / "a.csv"})["captions"]) == [odd]


@pytest.fixture(scope="module")
def photos(shared: Path) -> Records:
    folder = shared / "data/photos/train"
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()][:8]
    for record in records:
        record["content"] = (folder / record["file_name"]).read_bytes()
        record["captions"] = [" ".join(caption.split()) for caption in record["captions"]]
    return records


@pytest.fixture(scope="module")
def scored(photos: Records, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[int, float]]:
    """A trainer, and the loss of the photographs with their first caption and with all of them."""
    args = CaptionTrainingArguments(str(tmp_path_factory.mktemp("run")), metrics=[], use_cpu=True, report_to=[])
    model = save_captioner(tmp_path_factory.mktemp("model"))
    rows = {
        count: Dataset.from_list(
            [{"image": {"bytes": each["content"]}, "captions": each["captions"][:count]} for each in photos]
        )
        for count in (1, 5)
    }
    trainer = CaptionTrainer(str(model), args, eval_dataset=rows[5])
    return trainer, {count: loss_of(trainer, each) for count, each in rows.items()}


def loss_of(trainer: Any, rows: Any) -> float:
    """The loss alone: nothing is generated."""
    return float(trainer.evaluate(rows)["eval_loss"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_photographs_have_the_same_loss_in_every_layout(
    name: str, photos: Records, scored: tuple[Any, dict[int, float]], tmp_path: Path
) -> None:
    trainer, losses = scored
    if name == "class_folders":
        pytest.skip("captions with dots and slashes are no names of folders")
    rows = read(LAYOUTS[name](photos, tmp_path / "set"))
    assert as_known(rows) == expected(photos, name)
    assert loss_of(trainer, rows) == pytest.approx(losses[1 if name in ONE_CAPTION else 5], abs=1e-6)
