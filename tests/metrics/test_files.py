"""Captions and references from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from metrics_reference import DOG_REFERENCES, DOGS

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.files import format_table, read_predictions, read_references
from blip_recipe.metrics.scorer import score_captions
from blip_recipe.metrics.scores import check_same_images

COCO = {
    "images": [{"id": 2, "file_name": "2.jpg"}, {"id": 1, "file_name": "1.jpg"}],
    "annotations": [
        {"id": 5, "image_id": 1, "caption": "a dog"},
        {"id": 6, "image_id": 2, "caption": "a cat"},
        {"id": 7, "image_id": 1, "caption": "the dog"},
    ],
}


def written(path: Path, content: object) -> Path:
    """`path` with `content`: text as it is, a list of rows as JSON lines where the name says so, else JSON."""
    if isinstance(content, str):
        path.write_text(content, "utf-8")
    elif path.suffix == ".jsonl" and isinstance(content, list):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")
    else:
        path.write_text(json.dumps(content), "utf-8")
    return path


def test_coco_results_and_json_lines_read_alike(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "caption": "a \u2028 dog"}, {"image_id": "x", "caption": ""}]
    expected = {1: "a \u2028 dog", "x": ""}
    assert read_predictions(written(tmp_path / "a.json", rows)) == expected
    assert read_predictions(written(tmp_path / "a.jsonl", rows)) == expected
    assert read_predictions(written(tmp_path / "one.jsonl", rows[:1])) == {1: "a \u2028 dog"}


def test_coco_captions_and_json_lines_read_alike(tmp_path: Path) -> None:
    expected = {2: ["a cat"], 1: ["a dog", "the dog"]}
    assert read_references(written(tmp_path / "a.json", COCO)) == expected
    rows = [{"image_id": 2, "references": ["a cat"]}, {"image_id": 1, "captions": ["a dog", "the dog"]}]
    assert read_references(written(tmp_path / "a.jsonl", rows)) == expected
    assert list(read_references(tmp_path / "a.json")) == [2, 1]


def test_our_own_predictions_are_both_files(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "caption": "a dog", "references": ["the dog"], "scores": {"cider": 0.5}}]
    path = written(tmp_path / "predictions.jsonl", rows)
    assert read_predictions(path) == {1: "a dog"}
    assert read_references(path) == {1: ["the dog"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}], "image 1 occurs more than once"),
        ([{"image_id": n % 12, "caption": "a"} for n in range(24)], r"12 images \(0, 1, .*9, …\) occur more than once"),
        ([{"caption": "a"}], "without image_id"),
        ([{"image_id": 1}], "without caption"),
        ([{"image_id": True, "caption": "a"}], "without image_id"),
        ({"captions": []}, "holds one JSON object"),
        ('{"image_id": 1, "caption": "a"}\n{"image_id": 2,\n', "line 2 of .* is not JSON"),
        ("", "is empty"),
    ],
)
def test_predictions_that_cannot_be_scored_say_why(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_predictions(written(tmp_path / "predictions.json", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "lacks images or annotations"),
        (COCO | {"images": [{"id": 2}]}, "annotations for image 1, but its 'images' do not list"),
        (COCO | {"images": [{"id": 1}, {"id": 1}, {"id": 2}]}, "image 1 occurs more than once among the images"),
        ([{"image_id": 1, "references": []}], "without references"),
        ([{"image_id": 1, "references": "a dog"}], "without references"),
    ],
)
def test_references_that_cannot_be_used_say_why(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_references(written(tmp_path / "references.json", content))


def test_a_missing_file_and_a_picture_are_no_captions(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_predictions(tmp_path / "nowhere.json")
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_references(tmp_path / "picture.jpg")


def test_missing_and_unknown_images_are_named() -> None:
    with pytest.raises(RecipeError, match="there is no caption for image 2"):
        check_same_images({1: "a"}, {1: ["a"], 2: ["b"]})
    with pytest.raises(RecipeError, match=r"no list of references for 2 images \('3', 4\)"):
        check_same_images({1: "a", "3": "b", 4: "c"}, {1: ["a"]})


def test_the_table_shows_every_score_and_the_number_of_images() -> None:
    table = format_table(score_captions(DOGS, DOG_REFERENCES, ["bleu", "exact_match"]))
    assert table.splitlines()[0] == "2 images"
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        "bleu_1",
        "bleu_2",
        "bleu_3",
        "bleu_4",
        "exact_match",
    ]
    assert table.splitlines()[-1].split()[1] == "0.0000"
