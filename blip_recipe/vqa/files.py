"""Read VQAv2's files: a JSON file of questions, one of annotations, and COCO's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import ReadInstruction, concatenate_datasets

from blip_recipe.data.layouts.json_files import load_json
from blip_recipe.data.rows import PathRoot, find_pictures, images_from_paths
from blip_recipe.errors import RecipeError
from blip_recipe.vqa.rows import QuestionColumns, read_answers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datasets import Dataset

    from blip_recipe.vqa.arguments import VqaDataArguments

EXPECTED = (
    "Expected VQAv2's files: '..._questions.json' with 'questions' of image_id, question_id and question, and in the "
    "same folder '..._annotations.json' with 'annotations' of question_id and answers."
)
QUESTIONS, ANNOTATIONS = "_questions.json", "_annotations.json"


def is_vqa_folder(arguments: VqaDataArguments) -> bool:
    """Whether the data set is a directory with VQAv2's files, or a single one of its files of questions."""
    path = Path(str(arguments.dataset_name)).expanduser()
    return path.name.endswith(QUESTIONS) if path.is_file() else path.is_dir() and any(path.glob(f"*{QUESTIONS}"))


def read_vqa_files(arguments: VqaDataArguments, split: str, *, needs_answers: bool = True) -> QuestionColumns:
    """Read the questions of a split, of a slice (`train[:80%]`), or of a sum of these.

    A slice counts images, in the order in which the file names them, so all questions about an image stay together.

    `dataset_name` is a directory with the published files. A split is the file whose name contains it (`train` or
    `train2014` is `v2_OpenEnded_mscoco_train2014_questions.json`). `dataset_name` can also be a single file of
    questions, which is then used for every split, whole or in slices. Pictures are
    `image_root/train2014/COCO_train2014_000000000009.jpg` or directly in `image_root`, by default the directory of the
    files. A question can name another file in `image`.

    Args:
        arguments: The data arguments.
        split: The split.
        needs_answers: Whether the file of annotations may not be missing. VQAv2's test questions have none.

    Raises:
        RecipeError: There is no such split, a slice is not valid, a file has another format, or a picture is missing.
    """
    path = Path(str(arguments.dataset_name)).expanduser()
    asked = [name.strip().partition("[") for name in split.split("+")]
    places = [
        (path if path.is_file() else _find(path, name.strip()), bracket + bounds) for name, bracket, bounds in asked
    ]
    # Several names of a single file are the same questions.
    needs_answers = needs_answers or len(set(places)) > 1
    parts = [_read_file(file, arguments, part, needs_answers) for file, part in dict.fromkeys(places)]
    weights = [weight for part in parts for weight in part.answer_weights or ()]
    images: Any = [part.images for part in parts]
    return QuestionColumns(
        images=images[0] if len(images) == 1 else concatenate_datasets(images),
        questions=[question for part in parts for question in part.questions],
        answers=[answers for part in parts for answers in part.answers],
        image_ids=[image_id for part in parts for image_id in part.image_ids or ()],
        question_ids=[question_id for part in parts for question_id in part.question_ids or ()],
        answer_weights=weights or None,
    )


def _find(folder: Path, split: str) -> Path:
    names = sorted(path.name for path in folder.glob(f"*{QUESTIONS}"))
    fitting = [name for name in names if split in name.removesuffix(QUESTIONS)]
    if len(fitting) != 1:
        found = f"several files of the split {split!r}: {', '.join(fitting)}" if fitting else f"no split {split!r}"
        raise RecipeError(f"{folder} has {found}. Its question files are {', '.join(names)}.")
    return folder / fitting[0]


def _read_file(file: Path, arguments: VqaDataArguments, part: str, needs_answers: bool) -> QuestionColumns:
    content = load_json(file, EXPECTED)
    try:
        answers = _read_annotations(file, needs_answers)
        questions = content["questions"]
        if not all(isinstance(question["question"], (str, type(None))) for question in questions):
            raise ValueError("a question is not a text")
        if part:
            images = choose_images(part, [question["image_id"] for question in questions])
            questions = [question for question in questions if question["image_id"] in images]
        weight_column: Any = arguments.answer_weight_column
        return QuestionColumns(
            images=_pictures(questions, str(content.get("data_subtype", "")), arguments, file),
            questions=[question["question"] for question in questions],
            answers=[None if answers is None else answers.get(each["question_id"], []) for each in questions],
            image_ids=[question["image_id"] for question in questions],
            question_ids=[question["question_id"] for question in questions],
            answer_weights=weight_column and [question[weight_column] for question in questions],
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RecipeError(f"{file} is not as expected ({type(error).__name__}: {error}). {EXPECTED}") from error


def _read_annotations(file: Path, needs_answers: bool) -> dict[Any, list[str]] | None:
    """The answers to the questions of `file` by question id; None if there is no file of annotations."""
    annotations_file = file.with_name(file.name.replace("OpenEnded_", "").replace(QUESTIONS, ANNOTATIONS))
    if annotations_file != file and annotations_file.is_file():
        annotations = load_json(annotations_file, EXPECTED)["annotations"]
        return {each["question_id"]: read_answers(each["answers"]) for each in annotations}
    if needs_answers:
        raise RecipeError(
            f"{annotations_file.name}, the file of the answers, is missing in the folder of {file}. {EXPECTED}"
        )
    return None


def choose_images(part: str, image_ids: Iterable[Any]) -> set[Any]:
    """Choose the images of a slice such as `[:80%]` or `[100:]`. Images are counted in order of first appearance.

    Raises:
        RecipeError: The slice is not valid.
    """
    images = list(dict.fromkeys(image_ids))
    try:
        (bounds,) = ReadInstruction.from_spec(f"split{part}").to_absolute({"split": len(images)})
    except (ValueError, AssertionError) as error:
        raise RecipeError(
            f"The slice {part} cannot be read ({error}): expected bounds in images or percent, such as [:80%], [80%:] "
            "or [100:200]."
        ) from error
    return set(images[bounds.from_ : bounds.to])


def _pictures(questions: list[dict[str, Any]], subset: str, arguments: VqaDataArguments, file: Path) -> Dataset:
    root = Path(arguments.image_root).expanduser() if arguments.image_root else file.parent
    folder = f"{subset}/" if (root / subset).is_dir() and subset else ""
    paths = [
        str(question.get("image") or f"{folder}COCO_{subset}_{int(question['image_id']):012}.jpg")
        for question in questions
    ]
    allowed = PathRoot(root, absolute=arguments.image_root is None, probed=True)
    return images_from_paths(find_pictures(paths, allowed, str(file)))
