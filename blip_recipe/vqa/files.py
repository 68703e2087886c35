"""VQAv2's own files: a JSON of questions, one of annotations, and the pictures of COCO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import concatenate_datasets

from blip_recipe.data.files import find_pictures, load_json
from blip_recipe.errors import RecipeError
from blip_recipe.vqa.rows import QuestionColumns, read_answers

if TYPE_CHECKING:
    from datasets import Dataset

    from blip_recipe.vqa.arguments import VqaDataArguments

EXPECTED = (
    "Expected VQAv2's files: '..._questions.json' with 'questions' of image_id, question_id and question, and beside "
    "it '..._annotations.json' with 'annotations' of question_id and answers."
)
QUESTIONS, ANNOTATIONS = "_questions.json", "_annotations.json"


def is_vqa_folder(arguments: VqaDataArguments) -> bool:
    """Whether the data set is a directory with VQAv2's questions, or one file of them."""
    path = Path(str(arguments.dataset_name)).expanduser()
    return path.is_file() or (path.is_dir() and any(path.glob(f"*{QUESTIONS}")))


def read_vqa_files(arguments: VqaDataArguments, split: str) -> QuestionColumns:
    """The questions of a split, or of a sum of them.

    `dataset_name` is the directory with the files as they are published, of which a split takes those of its name
    (`train` or `train2014` takes `v2_OpenEnded_mscoco_train2014_questions.json`); or one file of questions, of which
    any split takes all. Pictures are `image_root/train2014/COCO_train2014_000000000009.jpg` or straight in
    `image_root`, which is the directory of the files if it is left out; a question may name another file by `image`.

    Raises:
        RecipeError: There is no such split, a file is not of this format, or no picture is where it should be.
    """
    path = Path(str(arguments.dataset_name)).expanduser()
    files = [path] if path.is_file() else [_find(path, name.strip()) for name in split.split("+")]
    parts = [_read_file(file, arguments) for file in files]
    images: Any = [part.images for part in parts]
    return QuestionColumns(
        images=images[0] if len(images) == 1 else concatenate_datasets(images),
        questions=[question for part in parts for question in part.questions],
        answers=[answers for part in parts for answers in part.answers],
        image_ids=[image_id for part in parts for image_id in part.image_ids or ()],
        question_ids=[question_id for part in parts for question_id in part.question_ids or ()],
    )


def _find(folder: Path, split: str) -> Path:
    names = sorted(path.name for path in folder.glob(f"*{QUESTIONS}"))
    fitting = [name for name in names if split in name.removesuffix(QUESTIONS)]
    if len(fitting) != 1:
        found = f"several files of the split {split!r}: {', '.join(fitting)}" if fitting else f"no split {split!r}"
        raise RecipeError(f"{folder} has {found}. Its files of questions are {', '.join(names)}.")
    return folder / fitting[0]


def _read_file(file: Path, arguments: VqaDataArguments) -> QuestionColumns:
    content = load_json(file, EXPECTED)
    annotations_file = file.with_name(file.name.replace("OpenEnded_", "").replace(QUESTIONS, ANNOTATIONS))
    if annotations_file == file or not annotations_file.is_file():
        raise RecipeError(
            f"{file} has no {annotations_file.name} beside it, so that its questions have no answers. {EXPECTED}"
        )
    try:
        answers = {
            annotation["question_id"]: read_answers(annotation["answers"])
            for annotation in load_json(annotations_file, EXPECTED)["annotations"]
        }
        questions = content["questions"]
        if not all(isinstance(question["question"], (str, type(None))) for question in questions):
            raise ValueError("a question is no text")
        return QuestionColumns(
            images=_pictures(questions, str(content.get("data_subtype", "")), arguments, file),
            questions=[question["question"] for question in questions],
            answers=[answers.get(question["question_id"], []) for question in questions],
            image_ids=[question["image_id"] for question in questions],
            question_ids=[question["question_id"] for question in questions],
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RecipeError(f"{file} is not as expected ({type(error).__name__}: {error}). {EXPECTED}") from error


def _pictures(questions: list[dict[str, Any]], subset: str, arguments: VqaDataArguments, file: Path) -> Dataset:
    root = Path(arguments.image_root).expanduser() if arguments.image_root else file.parent
    folder = f"{subset}/" if (root / subset).is_dir() and subset else ""
    paths = [
        str(question.get("image") or f"{folder}COCO_{subset}_{int(question['image_id']):012}.jpg")
        for question in questions
    ]
    return find_pictures(paths, root, arguments, file)
