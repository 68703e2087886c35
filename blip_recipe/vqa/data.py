"""Load data sets of questions as rows of `image`, `image_id`, `question_id`, `question` and `answers`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset, Image, IterableDataset, List, Value

from blip_recipe.data.arguments import SHAPES
from blip_recipe.data.columns import IMAGE_NAMES, SET_KEY, choose_image_column
from blip_recipe.data.convert import (
    ADVICE,
    TorchRows,
    check_dataset,
    get_entry,
    infer_features,
    raise_for_faults,
    with_features,
)
from blip_recipe.data.dataset import PictureDataset
from blip_recipe.data.load import is_read_by_shards
from blip_recipe.data.rows import PathRoot, images_from_paths, parse_split
from blip_recipe.data.shapes import SHAPES_SPLITS, name_scene
from blip_recipe.data.shards import ShardedSplit, read_directory
from blip_recipe.data.tables import fetch_stream, ids_of, images_of, load_table, path_root
from blip_recipe.errors import RecipeError
from blip_recipe.training.datasets import is_stream, resized_pictures, stream_keywords, warn_of_few_shards
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.files import is_vqa_folder, read_vqa_files
from blip_recipe.vqa.questions import Question, scene_questions
from blip_recipe.vqa.rows import QuestionColumns, check_weight, join_questions, read_answers
from blip_recipe.vqa.streams import QuestionStream, open_questions, shard_questions
from blip_recipe.vqa.texts import (
    ANSWER_NAMES,
    EXPECTED_ANSWERS,
    QUESTION_NAMES,
    WEIGHT,
    choose_question_columns,
    draw_question,
    read_question,
    read_row_answers,
    validate_question,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import BlipProcessor

    from blip_recipe.data.convert import Rows
    from blip_recipe.training.training_arguments import BlipTrainingArguments

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
PROBED = 100
"""How many of the files named by `image_id` are looked for, with each of these extensions."""


def load_questions(arguments: VqaDataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
    """Load a split of the recipe's data set.

    Args:
        arguments: The data arguments. `dataset_name` is `shapes`, a Hub id, a directory, or VQAv2's files
            (`read_vqa_files`).
        split: The split, or a sum of splits (`train+val`).
        max_samples: Load only this number of questions.

    Returns:
        Rows of `image`, `{"bytes", "path"}` (`datasets.Image(decode=False)`); `image_id` and `question_id`, those of
        the data (int or str) or row numbers; `question`; and `answers`, one per annotator. Texts are stripped. Rows
        with the same `image_id` are about one picture. A split other than `train_split` may have no answers at all;
        then they are None. `check_splits` finds rows that cannot be used.

    Raises:
        RecipeError: There is no such data set, split or column, the split is empty, or a path leads out of its folder.
    """
    where = f"{arguments.dataset_name}, split {split!r},"
    needs_answers = split == arguments.train_split
    if arguments.dataset_name == SHAPES:
        columns = _read_shapes(split, max_samples)
    elif is_read_by_shards(arguments):
        return read_directory(arguments, split, max_samples, partial(open_questions, needs_answers=needs_answers))
    elif is_vqa_folder(arguments):
        columns = read_vqa_files(arguments, split, needs_answers=needs_answers)
    else:
        table = load_table(arguments, split, max_samples)
        root = path_root(arguments, table)
        columns = _read_columns(table.rows, arguments, where, root=root, needs_answers=needs_answers)
    rows = join_questions(columns, where)
    return rows if max_samples is None else rows.select(range(min(max_samples, len(rows))))


def _read_shapes(split: str, max_samples: int | None) -> QuestionColumns:
    pictures: list[str] = []
    image_ids: list[int] = []
    questions: list[Question] = []
    asked = (
        (name_scene(name, number), of_scene)
        for name in parse_split(split, SHAPES_SPLITS, SHAPES)
        for number, (_, of_scene) in enumerate(scene_questions(name))
    )
    for image_id, (picture, of_scene) in enumerate(asked):
        if max_samples is not None and len(questions) >= max_samples:
            break
        pictures += [picture] * len(of_scene)
        image_ids += [image_id] * len(of_scene)
        questions += of_scene
    return QuestionColumns(
        images=images_from_paths(pictures),
        questions=[question.text for question in questions],
        answers=[list(question.answers) for question in questions],
        image_ids=image_ids,
    )


def _read_columns(
    table: Dataset,
    arguments: VqaDataArguments,
    where: str,
    advice: str = SET_KEY,
    root: PathRoot | None = None,
    needs_answers: bool = True,
) -> QuestionColumns:
    names = choose_question_columns(table.features, arguments, where, advice, needs_answers)
    answers = _answers_of(table, names.answers, where) if names.answers else []
    return QuestionColumns(
        _images_of(table, arguments, where, advice, root),
        [read_question(cell) for cell in table[names.question][:]],
        answers if needs_answers or any(answers) else [None] * len(table),
        None if names.image_id is None else ids_of(table, names.image_id, where),
        None if names.question_id is None else ids_of(table, names.question_id, where),
        None if names.weight is None else table[names.weight][:],
    )


def _images_of(table: Dataset, arguments: VqaDataArguments, where: str, advice: str, root: PathRoot | None) -> Dataset:
    """The column of pictures. A recipe's data may lack one: then `image_id` names the files, as in TextVQA.

    Raises:
        RecipeError: There is no such column, and no files of these names.
    """
    features, ids = table.features, table.features.get("image_id")
    has_pictures = not set(IMAGE_NAMES).isdisjoint(features) or any(
        isinstance(each, Image) for each in features.values()
    )
    has_names = isinstance(ids, Value) and "string" in ids.dtype
    if arguments.image_column or has_pictures or not has_names or advice != SET_KEY:
        column = choose_image_column(features, arguments.image_column, where, advice)
        return images_of(table, column, root, where, str(arguments.dataset_name))
    names = table["image_id"][:]
    for extension in PICTURE_EXTENSIONS:
        paths = (root or path_root(arguments)).resolve([name and f"{name}{extension}" for name in names], where)
        if any(path and Path(path).is_file() for path in paths[:PROBED]):
            return images_from_paths(paths)
    raise RecipeError(
        f"{where} has no column of pictures, and there are no files named by image_id, such as {names[0]}.jpg: set "
        "image_root to their directory, or image_column."
    )


def _answers_of(table: Dataset, columns: list[str], where: str) -> list[list[str]]:
    """The answers of each row."""
    cells = table.select_columns(columns).to_list()
    return [read_row_answers(row, columns, table.features, f"{where} row {number}") for number, row in enumerate(cells)]


def question_rows(dataset: Any, where: str, *, needs_answers: bool = True) -> Rows:
    """Convert a data set of questions to rows, one per question.

    Args:
        dataset: A `datasets.Dataset` or `IterableDataset`, or a torch data set. Its rows have a picture, a question and
            answers in columns with known names. Answers are a text, a number, a class, or a list of texts or structs
            (one per annotator).
        where: The name of the data set in messages.
        needs_answers: Whether the answers may not be missing altogether.

    Returns:
        Rows of `image`, `image_id`, `question_id`, `question`, `answers` and, if the data set has it, `answer_weight`.

    Raises:
        RecipeError: It is not a data set, a column is unknown or has an unexpected type, or a row has no question or no
            answer (for a torch data set: when the row is read).
    """
    check_dataset(dataset, where)
    if isinstance(dataset, IterableDataset):
        dataset = fetch_stream(with_features(dataset))
    if not isinstance(dataset, Dataset):
        item = dataset[0]
        image = choose_image_column(infer_features(item, where), None, where, ADVICE)
        names = (*COLUMNS, WEIGHT) if WEIGHT in item else COLUMNS
        question, answers = _first(QUESTION_NAMES, item, where), _first(ANSWER_NAMES, item, where)
        return TorchRows(dataset, where, partial(_read_item, image=image, question=question, answers=answers), names)
    table = dataset.with_format(None)
    columns = _read_columns(table, VqaDataArguments(dataset_name="."), where, ADVICE, needs_answers=needs_answers)
    texts = zip(columns.questions, columns.answers, strict=True)
    raise_for_faults((validate_question({"question": asked, "answers": said}) for asked, said in texts), where)
    # Joining chosen rows would copy their pictures.
    return table if is_question_rows(table) and _same_texts(table, columns) else join_questions(columns, where)


def _same_texts(table: Dataset, columns: QuestionColumns) -> bool:
    return table["question"][:] == columns.questions and table["answers"][:] == columns.answers


COLUMNS = ("image", "image_id", "question_id", "question", "answers")


def is_question_rows(dataset: Dataset) -> bool:
    """Whether a table already has the columns and types of `question_rows`."""
    features = dataset.features
    return (
        set(COLUMNS) <= features.keys()
        and features["image"] == Image(decode=False)
        and features["question"] == Value("string")
        and features["answers"] == List(Value("string"))
    )


def is_answered(rows: Any) -> bool:
    """Whether the questions of `question_rows` have answers."""
    return rows.select_columns(["answers"])[0]["answers"] is not None


def _first(known: Sequence[str], item: Mapping[str, Any], where: str) -> str:
    found = [name for name in known if name in item]
    if not found:
        raise RecipeError(f"{where} has none of the entries {', '.join(known)}: its entries are {', '.join(item)}.")
    return found[0]


def _read_item(item: Mapping[str, Any], where: str, *, image: str, question: str, answers: str) -> dict[str, Any]:
    asked, said = get_entry(item, question, where), get_entry(item, answers, where)
    if not isinstance(asked, (str, type(None))):
        raise RecipeError(f"{where}: {question!r} holds a {type(asked).__name__}: expected a question as text.")
    try:
        record = {
            "image": get_entry(item, image, where),
            "image_id": item.get("image_id"),
            "question_id": item.get("question_id"),
            "question": asked,
            "answers": read_answers(said),
            **({WEIGHT: check_weight(item[WEIGHT], where)} if WEIGHT in item else {}),
        }
    except TypeError as error:
        raise RecipeError(f"{where}: {answers!r} holds {error}: {EXPECTED_ANSWERS}.") from error
    if fault := validate_question(record):
        raise RecipeError(f"{where}: {fault}. Repair it, or leave it out.")
    return record


class QuestionDataset(PictureDataset):
    """A data set of `{"row", "image_key", "image", "question", "answers", "answer_weight"}`.

    Args:
        rows: Rows of `question_rows`; they are not changed.
        normalize: Whether to clean questions as the original does (`normalize_question`).
        kwargs: Other arguments of `PictureDataset`.
    """

    def __init__(self, rows: Rows, *, normalize: bool, **kwargs: Any) -> None:
        super().__init__(rows, **kwargs)
        self.normalize = normalize
        weights = [WEIGHT] if WEIGHT in rows.column_names else []
        self._texts = rows.select_columns(["image_id", "question", "answers", *weights])

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Row number, picture (uint8 `(3, height, width)`, square if augmented), question and answers.

        After `use_embeddings`, `image_embeds` `(patches, width)` replaces the picture.

        Raises:
            BadImageError: The picture cannot be read.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """The rows of a batch. A picture is read once, and augmented for the first of its rows."""
        texts = self._texts[rows]
        records = [dict(zip(texts, cells, strict=True)) for cells in zip(*texts.values(), strict=True)]
        images: dict[Any, dict[str, torch.Tensor]] = {}
        for row, key in zip(rows, texts["image_id"], strict=True):
            if key not in images:
                images[key] = self._image(row)
        return [
            {"row": row, "image_key": record["image_id"], **images[record["image_id"]]}
            | draw_question(record, self.normalize)
            for row, record in zip(rows, records, strict=True)
        ]

    def _image(self, row: int) -> dict[str, torch.Tensor]:
        """The picture of a row as `image`, or its cached embeddings as `image_embeds`."""
        if self.embeddings:
            store, keys = self.embeddings
            return {"image_embeds": store.load(keys[row])}
        # Read pictures from the table only if they are needed.
        picture = self.resized.get(row) or self.rows[row]["image"]
        return {"image": self.read_picture(picture, self.generator(row))}

    def picture_rows(self) -> list[int]:
        """For each row, the first row about the same image."""
        first: dict[Any, int] = {}
        return [first.setdefault(image_id, row) for row, image_id in enumerate(self._texts["image_id"])]


def build_dataset(
    dataset: Any, args: BlipTrainingArguments, processor: BlipProcessor, *, training: bool, name: str = "dataset"
) -> QuestionDataset | QuestionStream:
    """Convert a data set of questions for the trainer; only training streams, augments and reads from `image_cache`.

    Raises:
        RecipeError: A column is unknown, or `image_cache` cannot be written.
    """
    if training and is_stream(dataset):
        split = dataset if isinstance(dataset, ShardedSplit) else shard_questions(dataset, name)
        keywords = stream_keywords(args, split, processor)
        group: bool = cast("Any", args).group_questions
        stream = QuestionStream(split, normalize=args.normalize_captions, group_questions=group, **keywords)
        warn_of_few_shards(stream, args)
        return stream
    rows = question_rows(dataset, name, needs_answers=training)
    size = processor.image_processor.size["height"]
    return QuestionDataset(
        rows,
        image_size=size,
        normalize=args.normalize_captions,
        augmentation=args.augmentation if training else "none",
        seed=args.seed,
        resized=resized_pictures(rows, size, args) if training else None,
    )
