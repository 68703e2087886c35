"""Rows that cannot be used are all named before training, or left out and noted; several processes share the look."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from captioners import draw_pictures
from commands import run_code
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.captions import MAX_CHARACTERS
from blip_recipe.data.checks import check_splits
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main as finetune

UNREADABLE = {"truncated.jpg", "header_only.jpg", "zero_byte.jpg", "text_named.jpg", "bomb_20000x20000.png"}
FAIL, SKIP = CaptionDataArguments(), CaptionDataArguments(on_bad_image="skip")


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


GOOD = encode(Image.new("RGB", (20, 20)), "JPEG")


def make_rows(pictures: list[Any], ids: list[int] | None = None, captions: list[list[str]] | None = None) -> Dataset:
    columns = {
        "image": pictures,
        "image_id": ids or list(range(len(pictures))),
        "captions": captions or [["a caption"]] * len(pictures),
    }
    features = {"image": ImageFeature(decode=False), "image_id": Value("int64"), "captions": List(Value("string"))}
    return Dataset.from_dict(columns, features=Features(features))


def test_bad_rows_of_all_splits_stop_training_with_the_first_ten_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(GOOD[:-100])
    bad = {"bytes": None, "path": str(tmp_path / "bad.jpg")}
    train = make_rows([GOOD, bad] * 12, list(range(100, 124)))
    test = make_rows([GOOD, GOOD], captions=[["a caption"], []])
    with pytest.raises(RecipeError) as error:
        check_splits(
            {"train": train, "test": test}, CaptionDataArguments(test_split="validation", allow_shared_images=True)
        )
    message = str(error.value)
    assert "13 of 26 rows" in message
    named = [number for number in range(100, 124) if f"'train', image_id {number}:" in message]
    assert named == list(range(101, 121, 2))
    assert "bad.jpg" in message
    assert "3 more" in message
    assert "on_bad_image" in message


def test_bad_rows_are_skipped_with_one_warning_and_one_note_each(caplog: pytest.LogCaptureFixture) -> None:
    pictures = [GOOD, b"broken", None, GOOD, GOOD, GOOD]
    captions = [["fine"], ["x"], ["x"], [], ["x " * MAX_CHARACTERS], ["fine", "x" * MAX_CHARACTERS]]
    with caplog.at_level(logging.WARNING):
        checked = check_splits({"train": make_rows(pictures, captions=captions)}, SKIP)
    assert checked.rows["train"]["image_id"][:] == [0, 5]
    assert [(each.row, each.image_id, each.split) for each in checked.skipped] == [
        (n, n, "train") for n in (1, 2, 3, 4)
    ]
    reasons = ["its format is unknown", "There is no picture", "has no caption", "200,000 characters"]
    assert all(word in each.reason for word, each in zip(reasons, checked.skipped, strict=True))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"Skipped split 'train', image_id {number}" for number in (1, 2, 3, 4)
    ]


def test_a_split_of_which_nothing_can_be_used_is_an_error_even_so() -> None:
    with pytest.raises(RecipeError, match="None of the 1 rows of split 'train'"):
        check_splits({"train": make_rows([b"broken"])}, SKIP)


def test_good_rows_are_left_as_they_are() -> None:
    rows = make_rows([GOOD, encode(Image.new("L", (9, 9)), "PNG")])
    checked = check_splits({"train": rows}, FAIL)
    assert (checked.rows["train"] is rows, checked.skipped) == (True, [])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_one_pass_finds_every_odd_file_that_opening_would_refuse(shared: Path) -> None:
    files = sorted(path for path in (shared / "data/weird").iterdir() if path.suffix != ".json")
    rows = make_rows([{"bytes": None, "path": str(path)} for path in files])
    checked = check_splits({"train": rows}, SKIP)
    assert {files[each.row].name for each in checked.skipped} == UNREADABLE
    assert len(checked.rows["train"]) == len(files) - len(UNREADABLE)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe for eight pictures, of which two are broken and one has no caption."""
    paths = draw_pictures(tmp_path / "pictures", 8)
    paths[2].write_bytes(b"no picture")
    paths[5].write_bytes(b"")
    lines = [
        {"file_name": path.name, "text": "" if path is paths[6] else f"a picture of {path.stem}"} for path in paths
    ]
    (tmp_path / "pictures/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {
        "model_name_or_path": "tiny",
        "dataset_name": str(tmp_path / "pictures"),
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
    }
    (tmp_path / "recipe.json").write_text(json.dumps(keys))
    return tmp_path / "recipe.json"


def test_a_dry_run_names_every_bad_row_and_writes_nothing(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="3 of 8 rows cannot be used") as error:
        finetune([str(recipe), "--dry_run", "true"])
    assert all(f"image_id {number}:" in str(error.value) for number in (2, 5, 6))
    assert not (recipe.parent / "out").exists()


def test_a_run_that_skips_notes_what_it_left_out(recipe: Path) -> None:
    finetune([str(recipe), "--on_bad_image", "skip"])
    notes = [json.loads(line) for line in (recipe.parent / "out/skipped_rows.jsonl").read_text().splitlines()]
    assert [(note["row"], note["image_id"], note["split"]) for note in notes] == [(n, n, "train") for n in (2, 5, 6)]
    assert all(note["reason"] for note in notes)
    assert (
        "3 rows with no readable picture or no caption were left out" in (recipe.parent / "out/README.md").read_text()
    )


SHARES = """
import os, sys
from accelerate import PartialState
from blip_recipe.data import images
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.checks import check_splits
from blip_recipe.data.load import load_splits
PartialState()
opened, decode = [], images.open_lazily
images.open_lazily = lambda image, *rest: opened.append(image["path"][-6:-4]) or decode(image, *rest)
arguments = CaptionDataArguments(dataset_name=sys.argv[1], on_bad_image="skip")
checked = check_splits(load_splits(arguments), arguments)
kept, left_out = checked.rows["train"]["image_id"][:], [each.row for each in checked.skipped]
print(f"{os.environ['RANK']}: {sorted(opened)} {kept} {left_out}\\n", end="")
"""


def test_of_two_processes_each_opens_its_share_and_both_go_on_with_the_same_rows(recipe: Path) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = run_code(SHARES, recipe.parent / "pictures", env=environment, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == [
        "0: ['00', '02', '04', '06'] [0, 1, 3, 4, 7] [2, 5, 6]",
        "1: ['01', '03', '05', '07'] [0, 1, 3, 4, 7] [2, 5, 6]",
    ]
    assert done.stderr.count("Skipped split 'train', image_id 5") == 1
