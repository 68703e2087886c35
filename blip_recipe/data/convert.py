"""Rows of `image`, `image_id` and `captions` from the data sets that people hand to a trainer."""

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
from blip_recipe.data.captions import read_captions
from blip_recipe.data.columns import choose_caption_columns, choose_image_column
from blip_recipe.data.rows import SplitColumns, join_columns
from blip_recipe.data.shards import ShardedSplit, choose_columns
from blip_recipe.data.tables import captions_of, fetch_stream, ids_of, images_of
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IMAGE_ID = "image_id"
"""The column that names images: rows that share it are one image."""

FEATURES = Features({"image": Image(decode=False), IMAGE_ID: Value("int64"), "captions": List(Value("string"))})
"""Rows as the sources of recipes give them; ids may be text."""


class Rows(Protocol):
    """Rows of a table: a `datasets.Dataset`, or what reads a torch data set in its place."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...

    def select_columns(self, names: Any) -> Any: ...


def caption_rows(dataset: Any, where: str) -> Rows:
    """Images with captions, an image a row.

    Args:
        dataset: A `datasets.Dataset` or `IterableDataset`, or a torch data set, whose rows have a picture and captions
            in any shape that recipes read. Rows that share an `image_id` are one image.
        where: What it is called in messages.

    Returns:
        Rows of `image`, `image_id` and `captions`. A stream is read to its end and kept on the disk.

    Raises:
        RecipeError: No column of pictures or of captions is known, or it holds something else.
    """
    if isinstance(dataset, IterableDataset):
        dataset = fetch_stream(with_features(dataset))
    if not isinstance(dataset, Dataset):
        return TorchRows(dataset, where, partial(read_record, columns=find_columns(dataset[0], where)))
    if is_caption_rows(dataset):
        return dataset
    table = dataset.with_format(None)
    image_column = choose_image_column(table.features, None, where, ADVICE)
    caption_columns = choose_caption_columns(table.features, None, where, ADVICE)
    image_ids = ids_of(table, IMAGE_ID, where) if IMAGE_ID in table.features else None
    images = images_of(table, image_column, None, where)
    return join_columns(SplitColumns(images, captions_of(table, caption_columns, where), image_ids), where)


ADVICE = "rename it to {name!r} (`dataset.rename_column`): its columns are {columns}"


def is_caption_rows(dataset: Dataset) -> bool:
    """Whether a table has the columns, and the types of columns, that `caption_rows` gives."""
    features = dataset.features
    return (
        features.keys() == FEATURES.keys()
        and features["image"] == FEATURES["image"]
        and features["captions"] == FEATURES["captions"]
    )


def shard_stream(stream: IterableDataset, where: str) -> ShardedSplit:
    """A stream of images with captions as shards that are read while training.

    Raises:
        RecipeError: No column of pictures or of captions is known, or it holds something else.
    """
    stream = with_features(stream)
    # Paths are the caller's own word, as those of a directory here.
    arguments = CaptionDataArguments(
        dataset_name=".", image_id_column=IMAGE_ID if IMAGE_ID in stream.features else None
    )
    return choose_columns([stream], arguments, title=where)


def with_features(stream: IterableDataset) -> IterableDataset:
    """`stream` with known columns, whose pictures are not decoded."""
    return (stream if stream.features else stream._resolve_features()).decode(False)


def read_record(item: Any, where: str = "data set", *, columns: Columns | None = None) -> dict[str, Any]:
    """`image`, `image_id` (None, if there is none) and `captions` of one item of any data set.

    Args:
        item: A dictionary with a picture and captions.
        where: What the data set is called in messages.
        columns: Which of its entries these are, where that is known already.

    Raises:
        RecipeError: It is something else.
    """
    columns = columns or find_columns(item, where)
    cells = [item[name] for name in columns.captions]
    try:
        captions = read_captions(cells[0] if len(cells) == 1 else cells)
    except TypeError as error:
        raise RecipeError(f"{where} holds {error}: expected captions as text.") from error
    return {"image": item[columns.image], IMAGE_ID: item.get(IMAGE_ID), "captions": captions}


class Columns(NamedTuple):
    """Where items have their picture and their captions."""

    image: str
    captions: list[str]


def find_columns(item: Any, where: str) -> Columns:
    """Where an item has its picture and its captions.

    Raises:
        RecipeError: It is no dictionary, or has none.
    """
    features = features_of(item, where)
    return Columns(
        choose_image_column(features, None, where, ADVICE), choose_caption_columns(features, None, where, ADVICE)
    )


def features_of(item: Any, where: str) -> Features:
    """The types of columns that an item of a data set would have, as far as choosing columns needs them.

    Raises:
        RecipeError: It is no dictionary.
    """
    if not isinstance(item, Mapping):
        raise RecipeError(
            f"{where} gives a {type(item).__name__}: expected dictionaries with a picture and texts, such as "
            "{'image': ..., 'captions': [...]}."
        )
    return Features({name: _feature_of(value) for name, value in item.items()})


class TorchRows:
    """A map-style torch data set as rows; `image_id` is the row number, where items have none.

    Its items are read when they are asked for, so that what it does to pictures is done anew each time.

    Args:
        dataset: Whose items are dictionaries.
        where: What it is called in messages.
        read: An item, and what it is called in messages, to a row.
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

    def __len__(self) -> int:
        return len(self.dataset)

    def select_columns(self, names: Sequence[str] | str) -> TorchRows:
        """The same rows, cut to these columns."""
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
        record = self.read(self.dataset[row], f"{self.where} row {row}")
        return {name: row if name.endswith("_id") and value is None else value for name, value in record.items()}


def _feature_of(value: Any) -> Any:
    if isinstance(value, (Picture, torch.Tensor, np.ndarray)) or (isinstance(value, Mapping) and "bytes" in value):
        return Image()
    if isinstance(value, str):
        return Value("string")
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        return List(Value("string"))
    return Value("binary") if isinstance(value, bytes) else Value("null")


def source_name(dataset: Any) -> tuple[str, str | None] | None:
    """The Hub id and the commit that a `datasets` data set was downloaded from, as far as it tells."""
    info = getattr(dataset, "info", None)
    files = chain(info.download_checksums or ()) if isinstance(info, datasets.DatasetInfo) else ()
    for file in files:
        if file.startswith("hf://datasets/"):
            name, _, rest = file.removeprefix("hf://datasets/").partition("@")
            return name, rest.split("/")[0] or None
    return None
