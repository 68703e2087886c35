"""Captions and references of two files are paired by id or file name, as a whole or as a subset on request."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.pairing import pair_files
from blip_recipe.metrics.scorer import score_captions
from blip_recipe.metrics.scores import match_ids

IMAGES = {42: "val/COCO_000000000042.jpg", 7: "val/COCO_000000000007.jpg", 9: "test/COCO_000000000009.jpg"}
REFERENCES = {42: ["a dog", "the dog"], 7: ["a cat"], 9: ["two birds"]}
PREDICTIONS = {42: "a dog", 7: "a cat sleeps"}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def coco(folder: Path) -> Path:
    annotations = [{"image_id": key, "caption": text} for key, texts in REFERENCES.items() for text in texts]
    images = [{"id": key, "file_name": name} for key, name in IMAGES.items()]
    return write(folder / "references.json", {"images": images, "annotations": annotations})


def karpathy(folder: Path) -> Path:
    images = [
        {
            "cocoid": key,
            "filepath": name.partition("/")[0],
            "filename": name.partition("/")[2],
            "split": "test",
            "sentences": [{"raw": text, "tokens": text.split()} for text in REFERENCES[key]],
        }
        for key, name in IMAGES.items()
    ]
    return write(folder / "references.json", {"images": images, "dataset": "coco"})


def json_lines(folder: Path) -> Path:
    rows = [{"image_id": key, "image": IMAGES[key], "references": texts} for key, texts in REFERENCES.items()]
    return write(folder / "references.jsonl", lines(rows))


def csv_rows(folder: Path) -> Path:
    rows = [
        {"image_id": f"{key:012}", "file_name": IMAGES[key], "caption": text}
        for key, texts in REFERENCES.items()
        for text in texts
    ]
    return table(folder / "references.csv", rows)


REFERENCE_FILES = [coco, karpathy, json_lines, csv_rows]


def server_form(folder: Path) -> Path:
    return write(folder / "captions.json", [{"image_id": key, "caption": text} for key, text in PREDICTIONS.items()])


def our_predictions(folder: Path) -> Path:
    rows = [{"image_id": key, "caption": text, "references": ["x"], "scores": {}} for key, text in PREDICTIONS.items()]
    return write(folder / "predictions.jsonl", lines(rows))


def of_caption(folder: Path) -> Path:
    rows = [{"image": f"/photos/{IMAGES[key]}", "caption": text} for key, text in PREDICTIONS.items()]
    return write(folder / "captions.jsonl", lines(rows))


def of_caption_as_csv(folder: Path) -> Path:
    rows = [
        {"image": IMAGES[key].rpartition("/")[2], "caption": text, "error": ""} for key, text in PREDICTIONS.items()
    ]
    return table(folder / "captions.csv", rows)


def with_ids_as_csv(folder: Path) -> Path:
    return table(folder / "captions.csv", [{"image_id": key, "caption": text} for key, text in PREDICTIONS.items()])


PREDICTION_FILES = [server_form, our_predictions, of_caption, of_caption_as_csv, with_ids_as_csv]


@pytest.mark.parametrize("references", REFERENCE_FILES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("predictions", PREDICTION_FILES, ids=lambda make: make.__name__)
def test_a_subset_is_paired_on_request_in_every_form(tmp_path: Path, predictions: Any, references: Any) -> None:
    files = predictions(tmp_path), references(tmp_path)
    paired = pair_files(*files, subset=True)
    assert {int(key): text for key, text in paired.predictions.items()} == PREDICTIONS
    assert {int(key): texts for key, texts in paired.references.items()} == {
        key: REFERENCES[key] for key in PREDICTIONS
    }
    assert paired.predictions.keys() == paired.references.keys()
    assert paired.images == 3
    with pytest.raises(RecipeError, match=r"there is no caption for image .*9.*set subset to true"):
        pair_files(*files)


def test_captions_of_unknown_images_are_an_error_in_a_subset_too(tmp_path: Path) -> None:
    more = write(tmp_path / "captions.json", [{"image_id": key, "caption": "x"} for key in (42, 43)])
    with pytest.raises(RecipeError, match="there is a caption but no list of references for image 43"):
        pair_files(more, coco(tmp_path), subset=True)
    other = write(tmp_path / "captions.json", [{"image_id": 43, "caption": "x"}])
    with pytest.raises(RecipeError, match="there is no caption for 3 images"):
        pair_files(other, coco(tmp_path), subset=True)


def test_a_file_of_captions_alone_is_not_scored_against_itself(tmp_path: Path) -> None:
    for make in (server_form, of_caption_as_csv, with_ids_as_csv):
        file = make(tmp_path)
        with pytest.raises(RecipeError, match="without references"):
            pair_files(file, file)


def test_folders_tell_pictures_of_the_same_name_apart(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{folder}/1.jpg"} for number, folder in enumerate(("a", "b"))]
    annotations = [{"image_id": number, "caption": f"caption {number}"} for number in (0, 1)]
    references = write(tmp_path / "references.json", {"images": images, "annotations": annotations})
    rows = [{"image": f"C:\\photos\\{folder}\\1.jpg", "caption": folder} for folder in ("b", "a")]
    paired = pair_files(write(tmp_path / "captions.jsonl", lines(rows)), references)
    assert paired.predictions == {1: "b", 0: "a"}
    unclear = write(tmp_path / "captions.jsonl", lines([{"image": "1.jpg", "caption": "x"}]))
    with pytest.raises(RecipeError, match=r"1 of 1 pictures .*such as 1.jpg, are not exactly one picture"):
        pair_files(unclear, references, subset=True)
    twice = write(tmp_path / "captions.jsonl", lines([{"image": f"{x}/a/1.jpg", "caption": x} for x in "xy"]))
    with pytest.raises(RecipeError, match=r"2 pictures .* have only 1 file names"):
        pair_files(twice, references, subset=True)


def test_file_names_need_file_names_in_the_references(tmp_path: Path) -> None:
    references = write(tmp_path / "references.jsonl", lines([{"image_id": 42, "references": ["a dog"]}]))
    with pytest.raises(RecipeError, match="has no file names"):
        pair_files(of_caption(tmp_path), references, subset=True)


def test_pictures_that_could_not_be_captioned_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"image": IMAGES[42], "caption": "a dog"}, {"image": IMAGES[7], "error": "it is broken"}]
    with caplog.at_level(logging.WARNING):
        paired = pair_files(write(tmp_path / "captions.jsonl", lines(rows)), coco(tmp_path), subset=True)
    assert "1 of 2 pictures in" in caplog.text
    assert paired.predictions == {42: "a dog"}


@pytest.mark.parametrize("ids", [("42", "7"), ("000042", "0007")])
def test_ids_as_text_are_those_of_numbers_and_it_is_told_once(
    tmp_path: Path, ids: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"image_id": key, "caption": text} for key, text in zip(ids, PREDICTIONS.values(), strict=True)]
    with caplog.at_level(logging.WARNING):
        paired = pair_files(write(tmp_path / "captions.json", rows), coco(tmp_path), subset=True)
    assert caplog.text.count("compared as numbers") == 1
    assert list(paired.predictions) == list(paired.references) == list(ids)
    assert list(paired.references.values()) == [["a dog", "the dog"], ["a cat"]]


def test_ids_of_numbers_are_those_of_text_in_python(caplog: pytest.LogCaptureFixture) -> None:
    right = score_captions({1: "a dog runs", 2: "a cat"}, {1: ["a dog"], 2: ["a cat"]}, ["bleu"])
    with caplog.at_level(logging.WARNING):
        scores = score_captions({1: "a dog runs", 2: "a cat"}, {"001": ["a dog"], "002": ["a cat"]}, ["bleu"])
    assert scores == right
    assert caplog.text.count("compared as numbers") == 1


@pytest.mark.parametrize(
    ("values", "image_ids"),
    [
        ({"42": 1, "042": 2}, {42: 0}),  # two texts of one number
        ({"a": 1, "42": 2}, {"042": 0}),  # text on both sides
        ({42: 1}, {"42": 0, "042": 0}),
        ({42: 1}, {"42": 0, "a": 0}),
        ({"dog": 1}, {42: 0}),
    ],
)
def test_other_ids_are_compared_as_they_are(values: dict[Any, int], image_ids: dict[Any, int]) -> None:
    assert match_ids(values, image_ids) == values
