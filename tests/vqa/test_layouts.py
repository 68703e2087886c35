"""Questions are read from the files of VizWiz, TextVQA, BLIP, LLaVA and plain tables, with every answer as it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from captioners import draw_pictures
from datasets import Dataset, Features, Image, List, Value

from blip_recipe.data.images import open_image
from blip_recipe.errors import RecipeError
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.data import load_questions, question_rows
from blip_recipe.vqa.rows import read_answers

WORDS = ["None", "N/A", "unanswerable", "no", "NA", "nan", "null", "0", "2.50", "true"]
"""Answers that tables often take for missing or for other values."""

CELLS: list[tuple[Any, list[str]]] = [
    *((word, [word]) for word in WORDS),
    (WORDS, WORDS),
    ([{"answer": word, "answer_confidence": "maybe"} for word in WORDS], WORDS),
    ({"answer": WORDS, "answer_id": [*range(10)]}, WORDS),
    (repr(WORDS), WORDS),
    (json.dumps(WORDS), WORDS),
    (repr([{"answer": word, "answer_confidence": "no"} for word in WORDS]), WORDS),
    (json.dumps({"answer": WORDS}), WORDS),
    ("['yes' 'it\\'s'\n \"no\"]", ["yes", "it's", "no"]),
    ("[2, 2, 3]", ["2", "2", "3"]),
    ("[unclear]", ["[unclear]"]),
    ("it is [red]", ["it is [red]"]),
    (3, ["3"]),
    (3.0, ["3"]),
    (2.5, ["2.5"]),
    (float("nan"), []),
    (None, []),
    ("", []),
    ("  ", []),
    ([], []),
    ([""], []),
    ("[]", []),
    ("['']", []),
    (["", "red"], ["", "red"]),
]


@pytest.mark.parametrize(("cell", "answers"), CELLS, ids=[f"{type(cell).__name__} {cell!s:.20}" for cell, _ in CELLS])
def test_answers_are_read_from_every_form_of_a_cell(cell: Any, answers: list[str]) -> None:
    assert read_answers(cell) == answers


@pytest.mark.parametrize("cell", ["[{'answer': 'yes'}\n {'answer': 'no'}]", "['yes', no]", "{'answer': yes}"])
def test_a_list_that_was_written_as_text_and_cannot_be_read_is_an_error(cell: str) -> None:
    with pytest.raises(TypeError, match="a list that cannot be read"):
        read_answers(cell)


def make_table(features: dict[str, Any], **columns: list[Any]) -> Dataset:
    count = len(next(iter(columns.values())))
    pictures = [{"bytes": b"", "path": None}] * count
    return Dataset.from_dict({"image": pictures, **columns}, features=Features({"image": Image(), **features}))


def test_numbered_columns_hold_an_answer_of_an_annotator_each() -> None:
    names = [f"answer_{number}" for number in (10, 1, 2)]
    table = make_table(
        {"question": Value("string")} | dict.fromkeys(names, Value("string")),
        question=["What?", "Who?"],
        answer_10=["ten", None],
        answer_1=["None", "no"],
        answer_2=["two", ""],
    )
    assert question_rows(table, "data")["answers"][:] == [["None", "two", "ten"], ["no"]]


def test_columns_are_found_in_any_case_and_the_place_of_the_picture_is_left_out() -> None:
    features = {"Question": Value("string"), "Answer": Value("string")}
    table = make_table(features, Question=["<image>\nWhat is it?", "Why?\n<image>"], Answer=["N/A", "no"])
    rows = question_rows(table, "data")
    assert rows["question"][:] == ["What is it?", "Why?"]
    assert rows["answers"][:] == [["N/A"], ["no"]]


def test_vizwiz_rows_keep_all_answers_whatever_their_confidence() -> None:
    features = {
        "question": Value("string"),
        "answers": List({"answer": Value("string"), "answer_confidence": Value("string")}),
        "answerable": Value("int64"),
        "answer_type": Value("string"),
    }
    said = [
        {"answer": answer, "answer_confidence": confidence}
        for answer, confidence in (("unanswerable", "yes"), ("soda", "no"), ("coke", "maybe"))
    ]
    table = make_table(features, question=["What?"], answers=[said], answerable=[0], answer_type=["unanswerable"])
    assert question_rows(table, "data")["answers"][:] == [["unanswerable", "soda", "coke"]]


# Parquet files are read today; the other files below need the reader of local JSON and CSV files.


def in_parquet(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "data").mkdir()
    Dataset.from_list(rows).to_parquet(folder / "data" / "train.parquet")
    return str(folder / "data")


def test_textvqa_names_its_pictures_by_image_id(tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path / "pictures", 2)
    for path, name in zip(paths, ("3b21a", "0054c"), strict=True):
        path.rename(path.with_name(f"{name}.jpg"))
    rows = [
        {
            "image_id": name,
            "question_id": number,
            "question": f"Question {number}?",
            "answers": [f"answer {number}", "no"],
        }
        for number, name in enumerate(["3b21a", "3b21a", "0054c"])
    ]
    data = in_parquet(tmp_path, rows)
    keys = VqaDataArguments(dataset_name=data, image_root=str(tmp_path / "pictures"))
    found = load_questions(keys, "train")
    assert found["image_id"][:] == ["3b21a", "3b21a", "0054c"]
    assert [Path(row["image"]["path"]).name for row in found] == ["3b21a.jpg", "3b21a.jpg", "0054c.jpg"]
    assert [open_image(row["image"]).size for row in found] == [(40, 40)] * 3
    assert found["answers"][:] == [[f"answer {number}", "no"] for number in range(3)]
    with pytest.raises(RecipeError, match=r"no files named by image_id, such as 3b21a.jpg: set image_root"):
        load_questions(VqaDataArguments(dataset_name=data), "train")


def write_questions(folder: Path, images: int = 10) -> VqaDataArguments:
    """Two questions about each image in VQAv2's files; the second ones come after all first ones."""
    ids = [100 + 3 * number % images for number in range(images)] * 2
    questions = [
        {"image_id": image_id, "question_id": place, "question": f"Question {place}?", "image": f"{image_id}.png"}
        for place, image_id in enumerate(ids)
    ]
    annotations = [{"question_id": place, "answers": [{"answer": "yes"}]} for place in range(len(ids))]
    for path, image_id in zip(draw_pictures(folder, images), ids, strict=False):
        path.rename(folder / f"{image_id}.png")
    (folder / "my_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "my_annotations.json").write_text(json.dumps({"annotations": annotations}))
    return VqaDataArguments(dataset_name=str(folder / "my_questions.json"))


@pytest.mark.parametrize(
    ("split", "images"),
    [
        ("train[:80%]", slice(0, 8)),
        ("train[80%:]", slice(8, 10)),
        ("train[2:5]", slice(2, 5)),
        ("train[-3:]", slice(7, 10)),
        ("train[:25%]", slice(0, 2)),
        ("train", slice(0, 10)),
        ("train+val", slice(0, 10)),
        ("train[:2]+train[2:4]", slice(0, 4)),
    ],
)
def test_slices_of_vqav2s_file_count_images_and_keep_their_questions_together(
    tmp_path: Path, split: str, images: slice
) -> None:
    arguments = write_questions(tmp_path)
    order = list(dict.fromkeys(load_questions(arguments, "train")["image_id"][:]))
    rows = load_questions(arguments, split)
    assert sorted(rows["image_id"][:]) == sorted(order[images] * 2)
    assert all(Path(row["image"]["path"]).name == f"{row['image_id']}.png" for row in rows)


def test_slices_of_vqav2s_file_share_no_image(tmp_path: Path) -> None:
    arguments = write_questions(tmp_path, images=7)
    parts = [set(load_questions(arguments, split)["image_id"][:]) for split in ("train[:60%]", "train[60%:]")]
    assert len(parts[0] | parts[1]) == 7
    assert not parts[0] & parts[1]


def test_a_slice_that_is_none_is_an_error(tmp_path: Path) -> None:
    arguments = write_questions(tmp_path)
    with pytest.raises(RecipeError, match=r"The slice \[:x%\] cannot be read .*\[:80%\]"):
        load_questions(arguments, "train[:x%]")
    with pytest.raises(RecipeError, match="is empty"):
        load_questions(arguments, "train[:0]")


# Local JSON and CSV files of other kinds. They go through `load_table`, which reads such files since local layouts are
# read by their kind.

QUESTIONS = [("0000.png", "What is it?", ["None", "a square"]), ("0000.png", "How many?", ["1", "one"])]
QUESTIONS += [("0001.png", "Is it red?", ["N/A", "no"])]


def as_vizwiz(folder: Path) -> Path:
    rows = [
        {
            "image": image,
            "question": question,
            "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in answers],
            "answerable": 1,
        }
        for image, question, answers in QUESTIONS
    ]
    return write(folder / "train.json", rows)


def as_blip(folder: Path) -> Path:
    rows = [
        {"question_id": place, "question": question, "answer": answers, "image": image, "dataset": "vqa"}
        for place, (image, question, answers) in enumerate(QUESTIONS)
    ]
    return write(folder / "vqa_train.json", rows)


def as_textvqa(folder: Path) -> Path:
    rows = [
        {"image_id": image.removesuffix(".png"), "question_id": place, "question": question, "answers": answers}
        for place, (image, question, answers) in enumerate(QUESTIONS)
    ]
    return write(folder / "TextVQA_0.5.1_train.json", {"dataset_type": "train", "data": rows})


def as_json_lines(folder: Path) -> Path:
    rows = [{"image": image, "question": question, "answers": answers} for image, question, answers in QUESTIONS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl"


def as_csv(folder: Path) -> Path:
    return write_csv(folder / "train.csv", ["answers"], [[repr(answers)] for _, _, answers in QUESTIONS])


def as_csv_of_columns(folder: Path) -> Path:
    return write_csv(folder / "train.csv", ["answer_1", "answer_2"], [answers for _, _, answers in QUESTIONS])


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_csv(path: Path, names: list[str], cells: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", *names])
        for (image, question, _), own in zip(QUESTIONS, cells, strict=True):
            writer.writerow([image, question, *own])
    return path


FILES: list[Callable[[Path], Path]] = [as_vizwiz, as_blip, as_textvqa, as_json_lines, as_csv, as_csv_of_columns]


@pytest.mark.parametrize("make_file", FILES, ids=lambda make_file: make_file.__name__)
def test_questions_in_local_files_are_read_in_every_layout(tmp_path: Path, make_file: Callable[[Path], Path]) -> None:
    draw_pictures(tmp_path, 2)
    rows = load_questions(VqaDataArguments(dataset_name=str(make_file(tmp_path))), "train")
    assert rows["question"][:] == [question for _, question, _ in QUESTIONS]
    assert rows["answers"][:] == [answers for _, _, answers in QUESTIONS]
    assert [Path(row["image"]["path"]).name for row in rows] == [image for image, _, _ in QUESTIONS]
    assert all(open_image(row["image"]).size == (40, 40) for row in rows)


def test_each_question_of_a_llava_conversation_is_a_row(tmp_path: Path) -> None:
    draw_pictures(tmp_path, 2)
    said = [("human", "<image>\nWhat is it?"), ("gpt", "None"), ("human", "How many?"), ("gpt", "One square.")]
    conversations = [
        {"id": "a", "image": "0000.png", "conversations": [{"from": who, "value": text} for who, text in said]},
        {"id": "b", "image": "0001.png", "conversations": [{"from": who, "value": text} for who, text in said[:2]]},
    ]
    file = write(tmp_path / "llava.json", conversations)
    rows = load_questions(VqaDataArguments(dataset_name=str(file)), "train")
    assert rows["question"][:] == ["What is it?", "How many?", "What is it?"]
    assert rows["answers"][:] == [["None"], ["One square."], ["None"]]
    assert [Path(row["image"]["path"]).name for row in rows] == ["0000.png", "0000.png", "0001.png"]
