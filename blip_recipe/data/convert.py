"""Convert a data set that is passed to a trainer into rows of `image`, `image_id` and `captions`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import datasets
import numpy as np
import torch
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from PIL.Image import Image as Picture

from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.captions import read_captions, validate_captions
from blip_recipe.data.columns import CAPTION_NAMES, choose_caption_columns, choose_image_column
from blip_recipe.data.pixels import to_image
from blip_recipe.data.rows import GROUP, PROMPT, SplitColumns, join_columns
from blip_recipe.data.shards import ShardedSplit, choose_columns
from blip_recipe.data.tables import captions_of, fetch_stream, ids_of, images_of, texts_of
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.groups import name_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

IMAGE_ID = "image_id"
"""The column of image ids. Rows with the same id are one image."""

FEATURES = Features({"image": Image(decode=False), IMAGE_ID: Value("int64"), "captions": List(Value("string"))})
"""The columns of rows. Ids may also be text."""

TEXTS = (PROMPT, GROUP)
"""The columns that rows may also have. Beside other columns they are not read: `prompt` may be that of an image
generator."""


class Rows(Protocol):
    """The interface of rows: a `datasets.Dataset`, or `TorchRows` for a torch data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...

    def select_columns(self, names: Any) -> Any: ...

    @property
    def column_names(self) -> Any: ...


def caption_rows(dataset: Any, where: str) -> Rows:
    """Convert a data set into images with captions, one image per row.

    Args:
        dataset: A `datasets.Dataset`, `IterableDataset` or torch data set. Its rows have a picture and captions in any
            format that recipes read. Rows with the same `image_id` are one image. A string holds one caption per line;
            a list holds one caption per string. Prompts and groups are read from rows without other
            columns.
        where: Name of the data set in error messages.

    Returns:
        Rows of `image`, `image_id` and `captions`, and perhaps `prompt` and `group`. A stream is read to its end and
        saved to disk.

    Raises:
        RecipeError: The data set has the wrong type, its columns are unknown or of the wrong type, or a row has no
            caption (for a torch data set: raised when the row is read).
    """
    check_dataset(dataset, where)
    if isinstance(dataset, IterableDataset):
        dataset = fetch_stream(with_features(dataset))
    if not isinstance(dataset, Dataset):
        names = (*FEATURES, *find_texts(dataset[0]))
        return TorchRows(dataset, where, partial(read_record, columns=find_columns(dataset[0], where)), names)
    table = dataset.with_format(None)
    columns = choose_columns_of(table.features, where)
    image_ids = ids_of(table, IMAGE_ID, where) if IMAGE_ID in table.features else None
    captions = captions_of(table, columns.captions, where)
    if is_caption_rows(table) and len(set(image_ids or ())) == len(table) and table["captions"][:] == captions:
        rows = table
    else:
        texts = {name: texts_of(table, name, name, where) for name in find_texts(table.features)}
        images = images_of(table, columns.image, None, where)
        rows = join_columns(SplitColumns(images, captions, image_ids, texts), where)
    name_groups(rows[GROUP] if GROUP in rows.column_names else (), where)
    raise_for_faults(map(validate_captions, rows["captions"][:]), where, rows["image_id"] if image_ids else None)
    return rows


ADVICE = (
    "rename it to {name!r} (`dataset.rename_column`), and drop other candidates (`dataset.remove_columns`): "
    "its columns are {columns}"
)


def check_dataset(dataset: Any, where: str) -> None:
    """Check that a data set is a single split of a supported type.

    Raises:
        RecipeError: It has another type, no rows, or a transform that would be ignored.
    """
    is_table = isinstance(dataset, (Dataset, IterableDataset))
    if not is_table and (
        isinstance(dataset, (str, bytes, Mapping, torch.utils.data.IterableDataset))
        or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"))
        or hasattr(dataset, "iloc")  # of pandas
    ):
        todo = (
            f"Choose one of its splits: {', '.join(map(str, dataset))}."
            if isinstance(dataset, Mapping)
            else "`Dataset.from_list`, `from_pandas` and `from_generator` make one."
        )
        raise RecipeError(
            f"{where} is a {type(dataset).__name__}: expected one split, as a `datasets.Dataset` or `IterableDataset`, "
            f"or a torch data set with a length. {todo}"
        )
    if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
        raise RecipeError(f"{where} is empty: expected at least one picture with its texts.")
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise RecipeError(
            f"{where} has a transform (`with_transform` or `set_transform`), which would be ignored: rows are read as "
            "they are stored. Apply it beforehand with `dataset.map`, or remove it with `dataset.with_format(None)`. "
            "For random augmentation, use the argument `augmentation`."
        )


def raise_for_faults(faults: Iterable[str | None], where: str, image_ids: Iterable[Any] | None = None) -> None:
    """Raise an error if any row cannot be used.

    Args:
        faults: For each row, what is wrong with it, or None.
        where: Name of the data set in error messages.
        image_ids: Ids of the rows for error messages. Default: their indices.

    Raises:
        RecipeError: Some row cannot be used. The message names the first one and the number of them.
    """
    found = {row: fault for row, fault in enumerate(faults) if fault}
    if found:
        first = next(iter(found))
        name = f"row {first}" if image_ids is None else f"image_id {list(image_ids)[first]}"
        raise RecipeError(
            f"{where} {name}: {found[first]}. Rows that cannot be used: {len(found):,}. Repair them, or drop them "
            "(`dataset.filter`)."
        )


def is_caption_rows(dataset: Dataset) -> bool:
    """Whether a table already has the columns and types that `caption_rows` returns."""
    features = dataset.features
    return (
        features.keys() == {*FEATURES, *find_texts(features)}
        and features["image"] == FEATURES["image"]
        and features["captions"] == FEATURES["captions"]
        and all(features[name] == Value("string") for name in find_texts(features))
    )


def find_texts(columns: Iterable[str]) -> list[str]:
    """The columns of prompts and groups, if there are no other columns than those of rows; ids may be missing."""
    found = [name for name in TEXTS if name in columns]
    return found if {IMAGE_ID, *columns} == {*FEATURES, *found} else []


def shard_stream(stream: IterableDataset, where: str) -> ShardedSplit:
    """Convert a stream of images with captions into shards that are read while training.

    Raises:
        RecipeError: The columns of pictures or captions are unknown or of the wrong type.
    """
    stream = with_features(stream)
    choose_columns_of(stream.features, where)
    # With a local directory as name, absolute paths are allowed: the caller chose them.
    arguments = CaptionDataArguments(
        dataset_name=".",
        image_id_column=IMAGE_ID if IMAGE_ID in stream.features else None,
        prompt_column=PROMPT if PROMPT in find_texts(stream.features) else None,
    )
    return choose_columns([stream], arguments, title=where)


def with_features(stream: IterableDataset) -> IterableDataset:
    """Resolve the columns of a stream and turn off the decoding of pictures."""
    return (stream if stream.features else stream._resolve_features()).with_format(None).decode(False)


def read_record(item: Any, where: str = "data set", *, columns: Columns | None = None) -> dict[str, Any]:
    """Read `image`, `image_id` (or None) and `captions` of one item of any data set.

    Args:
        item: A dictionary with a picture and captions.
        where: Name of the data set in error messages.
        columns: The keys of the picture and the captions. Default: found by their names.

    Raises:
        RecipeError: The item is no such dictionary, or has no caption.
    """
    columns = columns or find_columns(item, where)
    cells = [get_entry(item, name, where) for name in columns.captions]
    try:
        captions = read_captions(cells[0] if len(cells) == 1 else cells)
    except TypeError as error:
        raise RecipeError(f"{where} holds {error}: expected captions as text.") from error
    if fault := validate_captions(captions):
        raise RecipeError(f"{where}: {fault}. Repair the row, or drop it.")
    record = {"image": get_entry(item, columns.image, where), IMAGE_ID: item.get(IMAGE_ID), "captions": captions}
    return record | {name: get_entry(item, name, where) for name in find_texts(item)}


def get_entry(item: Any, name: str, where: str) -> Any:
    """Get an entry of an item; tuples become lists.

    Raises:
        RecipeError: The item is not a dictionary, or lacks the entry.
    """
    if not isinstance(item, Mapping) or name not in item:
        what = f"has no {name!r}" if isinstance(item, Mapping) else f"is a {type(item).__name__}"
        raise RecipeError(f"{where} {what}: expected a dictionary with the entries of the first row.")
    return list(item[name]) if isinstance(item[name], tuple) else item[name]


class Columns(NamedTuple):
    """The keys of the picture and the captions."""

    image: str
    captions: list[str]


def find_columns(item: Any, where: str) -> Columns:
    """Find the keys of an item's picture and captions.

    Raises:
        RecipeError: The item is not a dictionary, or has no such keys.
    """
    return choose_columns_of(infer_features(item, where), where)


def choose_columns_of(features: Features, where: str) -> Columns:
    """Choose the columns of pictures and captions by their names and types.

    Raises:
        RecipeError: A column is missing, ambiguous or empty.
    """
    image = choose_image_column(features, None, where, ADVICE)
    named = [name for name in CAPTION_NAMES if name in features]
    if named and all(features[name] == Value("null") for name in named):
        raise RecipeError(f"{where} has no captions: {named[0]!r} holds None. Expected a text, or a list of texts.")
    return Columns(image, choose_caption_columns(features, None, where, ADVICE))


def infer_features(item: Any, where: str) -> Features:
    """Infer column types from an item of a data set, as far as `choose_columns_of` needs them.

    Raises:
        RecipeError: The item is not a dictionary.
    """
    if not isinstance(item, Mapping):
        raise RecipeError(
            f"{where} gives a {type(item).__name__}: expected dictionaries with a picture and texts, such as "
            "{'image': ..., 'captions': [...]}."
        )
    return Features({name: _infer_feature(value) for name, value in item.items()})


class TorchRows:
    """Rows of a map-style torch data set. Without an `image_id`, the id is the row number.

    Items are read on each access, so the data set's own random augmentation works.

    Args:
        dataset: A data set whose items are dictionaries.
        where: Name of the data set in error messages.
        read: Converts an item into a row; takes the item and its name in error messages.
        names: The columns of rows.
    """

    def __init__(
        self,
        dataset: Any,
        where: str,
        read: Callable[[Any, str], dict[str, Any]],
        names: Sequence[str] = tuple(FEATURES),
    ) -> None:
        self.dataset, self.where, self.read, self.names = dataset, where, read, tuple(names)

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.names)

    def __len__(self) -> int:
        return len(self.dataset)

    def select_columns(self, names: Sequence[str] | str) -> TorchRows:
        """The rows with these columns only."""
        return TorchRows(self.dataset, self.where, self.read, [names] if isinstance(names, str) else names)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return [self._read(row)[key] for row in range(len(self))]
        if isinstance(key, int):
            record = self._read(key)
            return {name: record[name] for name in self.names}
        records = [self._read(row) for row in key]
        return {name: [record[name] for record in records] for name in self.names}

    def _read(self, row: int) -> dict[str, Any]:
        where = f"{self.where} row {row}"
        record = self.read(self.dataset[row], where)
        record["image"] = _to_picture(record["image"], where)
        return {name: row if name.endswith("_id") and value is None else value for name, value in record.items()}


def _infer_feature(value: Any) -> Any:
    if isinstance(value, (Picture, torch.Tensor, np.ndarray)) or (isinstance(value, Mapping) and "bytes" in value):
        return Image()
    if isinstance(value, str):
        return Value("string")
    if isinstance(value, (list, tuple)) and all(isinstance(each, (str, Mapping, type(None))) for each in value):
        return List(Value("string"))
    return Value("null" if value is None else "binary")


def _to_picture(image: Any, where: str) -> Any:
    """Convert a tensor of a torch data set to a Pillow image; return other types unchanged."""
    if not isinstance(image, torch.Tensor):
        return image
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise RecipeError(
            f"{where}: the picture is a tensor {tuple(image.shape)} of {image.dtype}: expected bytes (torch.uint8) "
            "(3, height, width). Return it before scaling and normalisation, or return a Pillow image."
        )
    return to_image(image.expand(3, -1, -1))


def source_name(dataset: Any) -> tuple[str, str | None] | None:
    """The Hub id and commit that a `datasets` data set was downloaded from, or None if unknown."""
    info = getattr(dataset, "info", None)
    files = chain(info.download_checksums or ()) if isinstance(info, datasets.DatasetInfo) else ()
    for file in files:
        if file.startswith("hf://datasets/"):
            name, _, rest = file.removeprefix("hf://datasets/").partition("@")
            return name, rest.split("/")[0] or None
    return None
