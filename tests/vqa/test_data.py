"""Questions come as the same rows from every source: columns in any of their shapes, VQAv2's files, drawn scenes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from captioners import draw_pictures
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from blip_recipe.data.captions import normalize_question
from blip_recipe.data.images import open_image
from blip_recipe.data.shapes import make_scenes
from blip_recipe.errors import RecipeError
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.data import QuestionDataset, load_questions, question_rows
from blip_recipe.vqa.questions import scene_questions

COLUMNS = ["image", "image_id", "question_id", "question", "answers"]
STRUCTS = List({"answer": Value("string"), "answer_confidence": Value("string"), "answer_id": Value("int64")})
CELLS: dict[str, tuple[Any, Any]] = {
    "list of structs": (
        STRUCTS,
        [{"answer": each, "answer_confidence": "yes", "answer_id": 1} for each in ("2", "two")],
    ),
    "struct of lists": (
        {"answer": List(Value("string")), "answer_id": List(Value("int64"))},
        {"answer": ["2", "two"], "answer_id": [1, 2]},
    ),
    "list of texts": (List(Value("string")), ["2", " two "]),
}


def write_parquet(directory: Path, columns: Mapping[str, Any], features: dict[str, Any]) -> VqaDataArguments:
    pictures = draw_pictures(directory / "pictures", len(next(iter(columns.values()))))
    images = [{"bytes": path.read_bytes(), "path": None} for path in pictures]
    table = Dataset.from_dict({"image": images, **columns}, features=Features({"image": Image(), **features}))
    table.to_parquet(directory / "data" / "train.parquet")
    return VqaDataArguments(dataset_name=str(directory / "data"))


@pytest.mark.parametrize("cell", CELLS.values(), ids=list(CELLS))
def test_answers_of_several_annotators_are_read_in_every_shape(tmp_path: Path, cell: tuple[Any, Any]) -> None:
    feature, answers = cell
    columns = {
        "question": ["How many?", " Is it red? "],
        "answers": [answers, answers],
        "multiple_choice_answer": ["2", "2"],
        "question_id": [458752000, 458752001],
        "image_id": [458752, 458752],
    }
    text = Value("string")
    features = {"question": text, "answers": feature, "multiple_choice_answer": text}
    arguments = write_parquet(tmp_path, columns, features | {"question_id": Value("int64"), "image_id": Value("int64")})
    rows = load_questions(arguments, "train")
    assert rows.column_names == COLUMNS
    assert rows["answers"][:] == [["2", "two"]] * 2
    assert rows["question"][:] == ["How many?", "Is it red?"]
    assert rows["question_id"][:] == [458752000, 458752001]
    assert rows["image_id"][:] == [458752, 458752]
    assert open_image(rows[1]["image"]).size == (40, 40)


def test_a_plain_answer_is_one_annotators(tmp_path: Path) -> None:
    columns = {"question": ["How many?", "What?", "Which?"], "answer": ["2", None, ""]}
    arguments = write_parquet(tmp_path, columns, {"question": Value("string"), "answer": Value("string")})
    rows = load_questions(arguments, "train")
    assert rows["answers"][:] == [["2"], [], []]
    assert rows["image_id"][:] == rows["question_id"][:] == [0, 1, 2]
    assert len(load_questions(arguments, "train", max_samples=2)) == 2


def test_numbers_are_answers_and_empty_texts_among_others_too(tmp_path: Path) -> None:
    columns = {"question": ["a", "b"], "count": [3, 4]}
    arguments = write_parquet(tmp_path, columns, {"question": Value("string"), "count": Value("int64")})
    arguments.answer_column = "count"
    assert load_questions(arguments, "train")["answers"][:] == [["3"], ["4"]]
    columns = {"question": ["a", "b"], "answers": [["", "x"], [""]]}
    arguments = write_parquet(
        tmp_path / "texts", columns, {"question": Value("string"), "answers": List(Value("string"))}
    )
    assert load_questions(arguments, "train")["answers"][:] == [["", "x"], []]


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    arguments = write_parquet(
        tmp_path, {"asked": ["a"], "said": ["b"]}, {"asked": Value("string"), "said": Value("string")}
    )
    with pytest.raises(
        RecipeError, match=r"question, questions, query: set question_column to one of image, asked, said"
    ):
        load_questions(arguments, "train")
    arguments.question_column = "askd"
    with pytest.raises(RecipeError, match=r"no column 'askd', which question_column names"):
        load_questions(arguments, "train")
    arguments.question_column, arguments.answer_column = "asked", "said"
    assert load_questions(arguments, "train")["answers"][:] == [["b"]]


def test_columns_of_another_kind_are_refused(tmp_path: Path) -> None:
    columns = {"question": [["a"]], "answer": [{"yes": 1}]}
    features = {"question": List(Value("string")), "answer": {"yes": Value("int64")}}
    arguments = write_parquet(tmp_path, columns, features)
    with pytest.raises(RecipeError, match=r"column 'question' holds"):
        load_questions(arguments, "train")
    columns = {"question": ["a"], "answer": [{"yes": 1}]}
    arguments = write_parquet(tmp_path / "other", columns, features | {"question": Value("string")})
    with pytest.raises(RecipeError, match=r"row 0: column 'answer' holds a struct of yes"):
        load_questions(arguments, "train")


def write_vqav2(directory: Path, subset: str = "train2014", *, folder: bool = True) -> VqaDataArguments:
    """Three questions about two pictures, in the files that VQAv2 publishes."""
    directory.mkdir(exist_ok=True)
    questions = [
        {"image_id": image_id, "question_id": image_id * 1000 + number, "question": f"Question {number}?"}
        for image_id, number in ((9, 0), (9, 1), (25, 0))
    ]
    annotations = [
        {
            "question_id": question["question_id"],
            "image_id": question["image_id"],
            "multiple_choice_answer": "yes",
            "answers": [{"answer": "yes" if at < 9 else "no", "answer_id": at + 1} for at in range(10)],
        }
        for question in reversed(questions)
    ]
    head = {"data_type": "mscoco", "data_subtype": subset}
    (directory / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps(head | {"questions": questions}))
    (directory / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps(head | {"annotations": annotations}))
    pictures = directory / "pictures" / (subset if folder else "")
    for path, image_id in zip(draw_pictures(pictures, 2), (9, 25), strict=True):
        path.rename(pictures / f"COCO_{subset}_{image_id:012}.jpg")
    return VqaDataArguments(dataset_name=str(directory), image_root=str(directory / "pictures"))


@pytest.mark.parametrize("folder", [True, False])
def test_vqav2s_own_files_are_read(tmp_path: Path, folder: bool) -> None:
    arguments = write_vqav2(tmp_path, folder=folder)
    for split in ("train", "train2014"):
        rows = load_questions(arguments, split)
        assert rows.column_names == COLUMNS
        assert rows["question_id"][:] == [9000, 9001, 25000]
        assert rows["image_id"][:] == [9, 9, 25]
        assert rows["answers"][:] == [["yes"] * 9 + ["no"]] * 3
        assert [open_image(row["image"]).size for row in rows] == [(40, 40)] * 3


def test_splits_of_vqav2_can_be_summed_and_a_file_taken_alone(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    arguments = write_vqav2(tmp_path, "val2014")
    rows = load_questions(arguments, "train+val")
    assert len(rows) == 6
    assert "COCO_val2014" in rows[3]["image"]["path"]
    arguments.dataset_name = str(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json")
    assert len(load_questions(arguments, "anything")) == 3


def test_faults_of_vqav2s_files_are_named(tmp_path: Path) -> None:
    arguments = write_vqav2(tmp_path)
    with pytest.raises(RecipeError, match=r"no split 'dev'.*v2_OpenEnded_mscoco_train2014_questions.json"):
        load_questions(arguments, "dev")
    arguments.image_root = str(tmp_path / "v2")
    with pytest.raises(RecipeError, match="set image_root"):
        load_questions(arguments, "train")
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"not as expected \(KeyError: 'annotations'\)"):
        load_questions(arguments, "train")
    (tmp_path / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(RecipeError, match=r"v2_mscoco_train2014_annotations.json, the file of the answers, is missing"):
        load_questions(arguments, "train")
    (tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").write_text("[")
    with pytest.raises(RecipeError, match="cannot be read as JSON"):
        load_questions(arguments, "train")


def test_a_question_of_vqav2_that_nobody_answered_has_no_answers(tmp_path: Path) -> None:
    arguments = write_vqav2(tmp_path)
    file = tmp_path / "v2_mscoco_train2014_annotations.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    assert load_questions(arguments, "train")["answers"][:] == [[], ["yes"] * 9 + ["no"], ["yes"] * 9 + ["no"]]


def test_drawn_scenes_are_rows_like_any_other() -> None:
    rows = load_questions(VqaDataArguments(dataset_name="shapes"), "validation")
    asked = [question for _, questions in scene_questions("validation") for question in questions]
    assert rows.column_names == COLUMNS
    assert rows["question"][:] == [question.text for question in asked]
    assert rows["answers"][:] == [list(question.answers) for question in asked]
    assert rows["question_id"][:] == list(range(len(asked)))
    assert set(rows["image_id"][:]) == set(range(len(make_scenes("validation"))))
    with pytest.raises(RecipeError, match=r"'dev'.*train, validation, test"):
        load_questions(VqaDataArguments(dataset_name="shapes"), "dev")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("What color is the man's hat?", "what color is the man's hat?"),
        ('Is it "red" (or blue)...', "is it red or blue"),
        ("what:time;is#it~", "whattimeisit"),
        ("  two   spaces, and-a-dash ", "two spaces, and-a-dash"),
        ("word " * 60, " ".join(["word"] * 50)),
        ("", ""),
    ],
)
def test_questions_are_cleaned_as_the_originals(text: str, cleaned: str) -> None:
    assert normalize_question(text) == cleaned


def test_a_trainer_sees_cleaned_questions_and_augmented_pictures_the_same_in_each_run() -> None:
    rows = load_questions(VqaDataArguments(dataset_name="shapes"), "validation", max_samples=4)

    def dataset(**changed: Any) -> QuestionDataset:
        settings: dict[str, Any] = {"image_size": 96, "normalize": True, "augmentation": "none", "seed": 3}
        return QuestionDataset(rows, **settings | changed)

    plain, raw, augmented = dataset(), dataset(normalize=False), dataset(augmentation="blip")
    assert plain[2]["question"] == rows[2]["question"].lower()
    assert raw[2]["question"] == rows[2]["question"]
    assert [plain[row]["image_key"] for row in range(4)] == [0, 0, 0, 1]
    assert not (augmented[2]["image"] == plain[2]["image"]).all()
    assert (augmented[2]["image"] == dataset(augmentation="blip")[2]["image"]).all()
    before = augmented[2]["image"]
    augmented.set_epoch(1)
    assert not (augmented[2]["image"] == before).all()


def make_table(questions: list[str | None], answers: list[Any], feature: Any, name: str = "answers") -> Dataset:
    """A data set of a user's own, with all the columns that rows of recipes have."""
    columns = {
        "image": [{"bytes": b"", "path": None}] * len(questions),
        "image_id": list(range(len(questions))),
        "question_id": list(range(len(questions))),
        "question": questions,
        name: answers,
    }
    number = Value("int64")
    features = {"image": Image(decode=False), "image_id": number, "question_id": number, "question": Value("string")}
    return Dataset.from_dict(columns, features=Features(features | {name: feature}))


@pytest.mark.parametrize(
    ("feature", "cell"),
    [
        (List({"answer": Value("string")}), [{"answer": "cat"}]),
        (Value("string"), "cat"),
        (List(Value("string")), [None, " cat "]),
        (ClassLabel(names=["dog", "cat"]), 1),
        (List(ClassLabel(names=["dog", "cat"])), [1]),
    ],
)
def test_columns_of_our_names_are_read_in_every_shape(feature: Any, cell: Any) -> None:
    table = make_table(["What?"], [cell], feature).with_format("torch")
    assert question_rows(table, "data").select_columns(COLUMNS[1:])[0] == {
        "image_id": 0,
        "question_id": 0,
        "question": "What?",
        "answers": ["cat"],
    }


def test_rows_of_recipes_are_taken_as_they_are() -> None:
    rows = load_questions(VqaDataArguments(dataset_name="shapes"), "validation", max_samples=4)
    taken = question_rows(rows, "data")
    assert isinstance(taken, Dataset)
    assert taken.data.table.equals(rows.data.table)


@pytest.mark.parametrize(
    ("questions", "answers", "fault"),
    [
        (["What?", None, "  "], ["cat", "dog", "cow"], r"data row 1: it has no question\. .*cannot be used: 2"),
        ([None, None], ["cat", "dog"], r"data row 0: it has no question"),
        (["What?", "Who?"], ["cat", None], r"data row 1: it has no answer\. .*cannot be used: 1"),
    ],
)
def test_rows_without_question_or_answer_are_named(
    questions: list[str | None], answers: list[str | None], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        question_rows(make_table(questions, answers, Value("string"), "answer"), "data")


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ({"question": None}, "data row 1: it has no question"),
        ({"question": 3}, "data row 1: 'question' holds a int: expected a question"),
        ({"answers": None}, "data row 1: it has no answer"),
        ({"answers": [b"cat"]}, "data row 1: 'answers' holds a bytes"),
    ],
)
def test_items_of_a_torch_data_set_are_checked_when_they_are_read(item: dict[str, Any], fault: str) -> None:
    first = {"image": b"", "question": "What?", "answers": ("cat", "dog")}
    rows = question_rows([first, first | item, {"image": b"", "answers": "cat"}], "data")
    assert rows[0]["answers"] == ["cat", "dog"]
    with pytest.raises(RecipeError, match=fault):
        rows[1]
    with pytest.raises(RecipeError, match="data row 2 has no 'question'"):
        rows[2]


def test_what_is_no_data_set_of_questions_is_said_without_keys_of_recipes() -> None:
    table = make_table(["What?"], ["cat"], Value("string"))
    with pytest.raises(RecipeError, match=r"data is a dict: .*Choose one of its splits: train"):
        question_rows({"train": table}, "data")
    with pytest.raises(RecipeError, match=r"question, questions, query: rename it to 'question' \(`dataset.rename_col"):
        question_rows(table.rename_column("question", "asked"), "data")
