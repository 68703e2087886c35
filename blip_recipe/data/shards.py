"""A split as shards (parquet files, webdataset tars, an imagefolder) that `datasets` reads lazily, from any row on."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import fsspec
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.exceptions import DatasetGenerationError, DatasetsError

from blip_recipe.data import tables
from blip_recipe.data.captions import read_captions
from blip_recipe.data.columns import check_column, choose_caption_columns, choose_image_column
from blip_recipe.data.images import check_picture, wrap_image_errors
from blip_recipe.data.rows import SplitColumns
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from blip_recipe.data.arguments import CaptionDataArguments

SAMPLE = 1000
"""Images whose captions are looked at before training."""

READ_AT_ONCE = 16
"""Rows that are taken from a shard at once."""


class StreamedImage(NamedTuple):
    """An image of a shard: number of its first row, its id, its picture as it is stored, and its captions."""

    row: int
    image_id: int | str | None
    picture: Any
    captions: list[str]


@dataclass(frozen=True)
class ShardedSplit:
    """A split as shards that can be read from any row on.

    Args:
        tables: What `datasets` streams: one for each part of a sum of splits.
        arguments: The recipe's data keys.
        image_column: Where the pictures are.
        caption_columns: Where the captions are.
        images: How many there are, where the source tells.
        title: What it is called in messages.
        trusted: What addresses of the data set's own files begin with.
        name: What the only shard is called in messages, where it has a name.
    """

    tables: list[IterableDataset]
    arguments: CaptionDataArguments
    image_column: str
    caption_columns: list[str]
    images: int | None
    title: str
    trusted: str
    name: str | None = None

    @property
    def shards(self) -> int:
        """How many there are."""
        return sum(table.num_shards for table in self.tables)

    def read(self, shard: int, first_row: int = 0) -> Iterator[StreamedImage]:
        """The images of a shard, in their order; adjacent rows that share an id are one image.

        Raises:
            RecipeError: Rows of an image are not adjacent, or captions are no text.
        """
        column = self.arguments.image_id_column
        seen: set[int | str] = set()
        numbered = enumerate(self._rows(shard, first_row), first_row)
        for image_id, group in groupby(numbered, lambda each: each[0] if column is None else each[1][column]):
            rows = list(group)
            row, first = rows[0]
            if column is not None:
                self._check_id(image_id, column, seen, self.where(shard, row))
            captions = [caption for number, each in rows for caption in self._captions(each, shard, number)]
            yield StreamedImage(row, None if column is None else image_id, first[self.image_column], captions)

    def _check_id(self, image_id: Any, column: str, seen: set[int | str], where: str) -> None:
        """Note that an image was seen in its shard; shards are small enough to remember their ids."""
        if image_id is None:
            raise RecipeError(f"{where}, has no {column!r}: expected an id in each row.")
        if image_id in seen:
            raise RecipeError(
                f"{where}, has the {column} {image_id!r} of rows before it that are not beside it: a stream joins only "
                "adjacent rows of an image. Sort the data by that column, or leave streaming out."
            )
        seen.add(image_id)

    def _rows(self, number: int, first_row: int) -> Iterator[dict[str, Any]]:
        shard = number
        for table in self.tables:
            if shard < table.num_shards:
                break
            shard -= table.num_shards
        rows = table.shard(num_shards=table.num_shards, index=shard).skip(first_row)
        # Iterated row by row, a table would leave shards to the other workers of a loader.
        batches = rows.iter(READ_AT_ONCE)
        while batch := self._read_batch(batches, number):
            names = list(batch)
            yield from (dict(zip(names, cells, strict=True)) for cells in zip(*batch.values(), strict=True))

    def _read_batch(self, batches: Iterator[dict[str, list[Any]]], shard: int) -> dict[str, list[Any]] | None:
        """The next of `batches`, or nothing behind the last.

        Raises:
            RecipeError: The shard is broken, or was out of reach for too long.
        """
        try:
            return next(batches, None)
        except (OSError, ValueError, tarfile.TarError, DatasetsError) as error:
            raise RecipeError(
                f"{self._where(shard)}, cannot be read ({type(error).__name__}: {error}): expected whole parquet "
                "files, webdataset tars or an imagefolder."
            ) from error

    def _captions(self, row: dict[str, Any], shard: int, number: int) -> list[str]:
        cells = [row[column] for column in self.caption_columns]
        try:
            return read_captions(cells[0] if len(cells) == 1 else cells)
        except TypeError as error:
            raise RecipeError(f"{self.where(shard, number)} holds {error}: expected captions as text.") from error

    def picture(self, cell: Any) -> Any:
        """A stored picture as `open_image` takes it; files of the data set itself are fetched.

        Raises:
            BadImageError: Such a file cannot be read.
            RecipeError: A path leads where the data set may not.
        """
        if isinstance(cell, bytes):
            return {"bytes": cell, "path": None}
        picture = {"bytes": None, "path": cell} if isinstance(cell, str) else cell or {"bytes": None, "path": None}
        path = picture["path"]
        if picture["bytes"] is not None or path is None:
            return picture
        if "://" in path and path.rpartition("::")[2].startswith(self.trusted):
            with wrap_image_errors(picture), fsspec.open(path, "rb") as file:
                return {"bytes": file.read(), "path": path}
        (place,) = tables.path_root(self.arguments).resolve([path], str(self.arguments.dataset_name))
        return {"bytes": None, "path": place}

    def describe(self) -> str:
        """How large it is, as far as that is known."""
        images = f"{self.images:,}" if self.images else "an unknown number of"
        return f"{self.shards:,} shards with {images} images"

    def where(self, shard: int, row: int) -> str:
        """A row's name for messages."""
        return f"{self._where(shard)}, row {row}"

    def _where(self, shard: int) -> str:
        if self.name is not None:
            return self.name
        return f"{self.title}, shard {shard}"

    def sample(self) -> Dataset:
        """Some images with their captions, as `load_split` gives them; the first opens, and alone has its picture.

        Raises:
            RecipeError: There are none, or what is read of them is wrong.
        """
        found = list(islice((image for shard in range(self.shards) for image in self.read(shard)), SAMPLE))
        if not found:
            raise RecipeError(f"{self.title}, is empty: expected at least one picture with captions.")
        good = next((n for n, each in enumerate(found) if check_picture(self.picture(each.picture)) is None), 0)
        found.insert(0, found.pop(good))
        return Dataset.from_dict(
            {
                "image": [self.picture(found[0].picture), *[None] * (len(found) - 1)],
                "image_id": list(range(len(found))),
                "captions": [each.captions for each in found],
            },
            features=Features(
                {"image": Image(decode=False), "image_id": Value("int64"), "captions": List(Value("string"))}
            ),
        )


def open_stream(arguments: CaptionDataArguments) -> ShardedSplit:
    """The training split as shards; nothing is read but what tells its columns.

    Raises:
        RecipeError: There is no such data set, split or column.
    """
    return choose_columns([_open(arguments, name.strip()) for name in arguments.train_split.split("+")], arguments)


def choose_columns(
    streams: list[IterableDataset], arguments: CaptionDataArguments, name: str | None = None, title: str | None = None
) -> ShardedSplit:
    """Streams, whose pictures are not decoded, as the shards of a split.

    Args:
        streams: Of its parts.
        arguments: The recipe's data keys.
        name: What the only shard is called in messages, where it has a name.
        title: What a data set of the caller's own is called in messages; what it takes from the Hub is trusted.

    Raises:
        RecipeError: A column is missing or holds something else.
    """
    features = streams[0].features
    trusted = "hf://datasets/" if title else _own_files(arguments)
    title = title or f"{arguments.dataset_name}, split {arguments.train_split!r}"
    where = f"{name or title},"
    image_column = choose_image_column(features, arguments.image_column, where)
    caption_columns = choose_caption_columns(features, arguments.caption_column, where)
    feature, id_column = features[image_column], arguments.image_id_column
    is_struct = isinstance(feature, dict) and feature.keys() <= {"bytes", "path"}
    is_value = isinstance(feature, Value) and ("string" in feature.dtype or "binary" in feature.dtype)
    if not (isinstance(feature, Image) or is_struct or is_value):
        raise RecipeError(f"{where} column {image_column!r} holds {feature}: expected pictures, bytes, paths or URLs.")
    if id_column is not None:
        check_column(features, id_column, "image_id_column", where)
    columns = list(dict.fromkeys([image_column, *caption_columns, *([id_column] if id_column else [])]))
    for stream in streams:
        for column in columns:
            check_column(stream.features, column, "a part of train_split", where)
    return ShardedSplit(
        [stream.select_columns(columns) for stream in streams],
        arguments,
        image_column,
        caption_columns,
        _count(streams) if id_column is None else None,
        title,
        trusted,
        name,
    )


def _own_files(arguments: CaptionDataArguments) -> str:
    """What addresses of the files of a directory or Hub data set begin with."""
    directory = Path(str(arguments.dataset_name)).expanduser()
    return f"{directory.resolve()}/" if directory.is_dir() else f"hf://datasets/{arguments.dataset_name}@"


def _open(arguments: CaptionDataArguments, split: str) -> IterableDataset:
    name = str(arguments.dataset_name)
    if tables.is_directory(arguments):
        name = str(Path(name).expanduser().resolve())
    try:
        stream = datasets.load_dataset(
            name, arguments.dataset_config_name, split=split, revision=arguments.dataset_revision, streaming=True
        )
        stream = stream if stream.features else stream._resolve_features()
        return stream.decode(False)
    except (OSError, ValueError, TypeError, RuntimeError, DatasetsError) as error:
        raise RecipeError(tables.explain_load_error(error, arguments, split)) from error


def _count(streams: list[IterableDataset]) -> int | None:
    """The rows of all `streams`, where the data set's card tells them."""
    counts = [
        stream.info.splits[stream.split].num_examples if stream.info.splits and stream.split else 0
        for stream in streams
    ]
    return sum(counts) if all(counts) else None


def read_directory(arguments: CaptionDataArguments, split: str, max_images: int | None) -> SplitColumns:
    """The images of one split of a directory, written down without those of the others.

    Raises:
        RecipeError: As `open_stream`, and where rows of an image are not adjacent.
    """
    source = open_stream(replace(arguments, train_split=split))
    directory = Path(str(arguments.dataset_name)).expanduser()
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(directory.rglob("*"))]
    # Named by what it is made of: `datasets` would give the rows of changed files from its cache.
    stamp = hashlib.sha256(repr(files).encode()).hexdigest()
    id_column = arguments.image_id_column
    features = {"image": Image(decode=False), "captions": List(Value("string"))}
    features |= {"image_id": source.tables[0].features[id_column]} if id_column else {}
    try:
        rows = Dataset.from_generator(
            _yield_images,
            features=Features(features),
            gen_kwargs={"source": source, "max_images": max_images, "stamp": stamp},
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, RecipeError):
            raise error.__cause__ from None
        raise
    ids = rows["image_id"][:] if id_column else None
    return SplitColumns(rows.select_columns(["image"]), rows["captions"][:], ids)


def _yield_images(source: ShardedSplit, max_images: int | None, stamp: str) -> Iterator[dict[str, Any]]:
    images = chain.from_iterable(map(source.read, range(source.shards)))
    for image in islice(images, max_images):
        row = {"image": source.picture(image.picture) if image.picture else None, "captions": image.captions}
        yield row if image.image_id is None else row | {"image_id": image.image_id}
