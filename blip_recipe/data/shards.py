"""Read a split lazily from shards (parquet files, webdataset tars or an imagefolder), starting at any row."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from datasets.exceptions import DatasetGenerationError, DatasetsError

from blip_recipe.data import tables
from blip_recipe.data.captions import read_captions
from blip_recipe.data.columns import (
    check_column,
    check_text_column,
    choose_caption_columns,
    choose_image_column,
    read_text,
)
from blip_recipe.data.holdout import fingerprint, role_of
from blip_recipe.data.images import check_picture, wrap_image_errors
from blip_recipe.data.layouts import LISTED, METADATA, SHARDS
from blip_recipe.data.rows import SplitColumns, check_same_text, join_columns
from blip_recipe.data.tars import load_source
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from blip_recipe.data.arguments import CaptionDataArguments

SAMPLE = 1000
"""Number of images that `ShardedSplit.sample` reads before training."""

STREAMED = (SHARDS, METADATA, LISTED, None)
"""The kinds of folders that `datasets` streams; None is a kind that only `datasets` knows."""

READ_AT_ONCE = 16
"""Number of rows read from a shard at once."""


class StreamedImage(NamedTuple):
    """An image of a shard: its first row, id, picture as stored, captions, and its prompt and group if it has them."""

    row: int
    image_id: int | str | None
    picture: Any
    captions: list[str]
    texts: dict[str, str]


@dataclass(frozen=True)
class ShardedSplit:
    """A split as shards that can be read from any row on.

    Args:
        tables: The streams of `datasets`, one for each part of a sum of splits.
        arguments: The recipe's data keys.
        image_column: The column of pictures.
        caption_columns: The columns of captions.
        images: The number of images, if the source tells it.
        title: Name of the split in error messages.
        trusted: Prefix of the paths of the data set's own files.
        name: Name of the only shard in error messages, if it has one.
        role: Which images to read if some are held out: `train`, `eval` or `test`.
        scored: Digests of the pictures that are scored: they are left out of the training.
    """

    tables: list[IterableDataset]
    arguments: CaptionDataArguments
    image_column: str
    caption_columns: list[str]
    images: int | None
    title: str
    trusted: str
    name: str | None = None
    role: str = "train"
    scored: frozenset[bytes] = frozenset()

    @property
    def shards(self) -> int:
        """The number of shards."""
        return sum(table.num_shards for table in self.tables)

    def read(self, shard: int, first_row: int = 0) -> Iterator[StreamedImage]:
        """Read the images of a shard in order. Adjacent rows with the same id are one image.

        Raises:
            RecipeError: The shard is broken, rows of an image are not adjacent or have different prompts or
                groups, or captions are not text.
        """
        column, shares = self.arguments.image_id_column, self.arguments.held_out()
        seen: set[int | str] = set()
        numbered = enumerate(self._rows(shard, first_row), first_row)
        for image_id, group in groupby(numbered, lambda each: each[0] if column is None else each[1][column]):
            rows = list(group)
            row, first = rows[0]
            if column is not None:
                self._check_id(image_id, column, seen, self.where(shard, row))
            captions = [caption for number, each in rows for caption in self._captions(each, shard, number)]
            picture = first[self.image_column]
            if shares and role_of(fingerprint(self.picture(picture)), shares, self.arguments.split_seed) != self.role:
                continue
            texts = self._texts([each for _, each in rows], image_id, self.where(shard, row))
            yield StreamedImage(row, None if column is None else image_id, picture, captions, texts)

    def _texts(self, rows: list[dict[str, Any]], image_id: Any, where: str) -> dict[str, str]:
        """The prompt and the group of an image, if images have them."""
        found: dict[str, str] = {}
        for name, column in self.arguments.text_columns().items():
            texts = [read_text(row[column], self.tables[0].features[column]) for row in rows]
            check_same_text(name, [image_id] * len(rows), texts, f"{where},")
            found[name] = texts[0]
        return found

    def _check_id(self, image_id: Any, column: str, seen: set[int | str], where: str) -> None:
        """Check that the id is new in its shard, and remember it."""
        if image_id is None:
            raise RecipeError(f"{where}, has no {column!r}: expected an id in each row.")
        if image_id in seen:
            raise RecipeError(
                f"{where}, has the same {column} {image_id!r} as an earlier row that is not adjacent: a stream joins "
                "only adjacent rows of an image. Sort the data by that column, or read it without streaming."
            )
        seen.add(image_id)

    def _rows(self, number: int, first_row: int) -> Iterator[dict[str, Any]]:
        shard = number
        for table in self.tables:
            if shard < table.num_shards:
                break
            shard -= table.num_shards
        rows = table.shard(num_shards=table.num_shards, index=shard).skip(first_row)
        # `iter` reads the whole shard. Iterating over rows would split shards among the workers of a DataLoader.
        batches = rows.iter(READ_AT_ONCE)
        while batch := self._read_batch(batches, number):
            names = list(batch)
            yield from (dict(zip(names, cells, strict=True)) for cells in zip(*batch.values(), strict=True))

    def _read_batch(self, batches: Iterator[dict[str, list[Any]]], shard: int) -> dict[str, list[Any]] | None:
        """Read the next batch, or None at the end.

        Raises:
            RecipeError: The shard is broken, or cannot be reached.
        """
        try:
            return next(batches, None)
        except (OSError, ValueError, tarfile.TarError, DatasetsError) as error:
            raise RecipeError(
                f"{self._where(shard)}, cannot be read ({type(error).__name__}: {error}): expected complete parquet "
                "files, webdataset tars or an imagefolder. Repair or replace it."
            ) from error

    def _captions(self, row: dict[str, Any], shard: int, number: int) -> list[str]:
        cells = [row[column] for column in self.caption_columns]
        try:
            return self.arguments.surround(read_captions(cells[0] if len(cells) == 1 else cells))
        except TypeError as error:
            raise RecipeError(f"{self.where(shard, number)} holds {error}: expected captions as text.") from error

    def picture(self, cell: Any) -> Any:
        """Convert a stored picture for `open_image`; the data set's own files are read.

        Raises:
            BadImageError: A file of the data set cannot be read.
            RecipeError: A path is not allowed in this data set.
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
        """Describe the number of shards and images."""
        images = f"{self.images:,}" if self.images else "an unknown number of"
        return f"{self.shards:,} shards with {images} images"

    def where(self, shard: int, row: int) -> str:
        """Name a row in error messages."""
        return f"{self._where(shard)}, row {row}"

    def _where(self, shard: int) -> str:
        if self.name is not None:
            return self.name
        return f"{self.title}, shard {shard}"

    def sample(self) -> Dataset:
        """Read some images with captions, in the format of `load_split`. Only the first row has a (readable) picture.

        Raises:
            RecipeError: The split is empty, or its rows are wrong.
        """
        found = list(islice((image for shard in range(self.shards) for image in self.read(shard)), SAMPLE))
        if not found:
            raise RecipeError(f"{self.title}, is empty: expected at least one picture with captions.")
        good = next((n for n, each in enumerate(found) if check_picture(self.picture(each.picture)) is None), 0)
        found.insert(0, found.pop(good))
        cells = {
            "image": [self.picture(found[0].picture), *[None] * (len(found) - 1)],
            "image_id": list(range(len(found))),
            "captions": [each.captions for each in found],
        }
        features = {"image": Image(decode=False), "image_id": Value("int64"), "captions": List(Value("string"))}
        for name in self.arguments.text_columns():
            cells[name], features[name] = [each.texts[name] for each in found], Value("string")
        return Dataset.from_dict(cells, features=Features(features))


def open_stream(arguments: CaptionDataArguments) -> ShardedSplit:
    """Open the training split as shards. Only what is needed to know the columns is read.

    Raises:
        RecipeError: The data set, split or column does not exist.
    """
    return choose_columns([_open(arguments, name.strip()) for name in arguments.train_split.split("+")], arguments)


def choose_columns(
    streams: list[IterableDataset], arguments: CaptionDataArguments, name: str | None = None, title: str | None = None
) -> ShardedSplit:
    """Choose the columns of streams with undecoded pictures, and combine them into one split.

    Args:
        streams: The streams of the parts of a sum of splits.
        arguments: The recipe's data keys.
        name: Name of the only shard in error messages, if it has one.
        title: Name of a data set passed by the caller, in error messages. Its files on the Hub are trusted.

    Raises:
        RecipeError: A column is missing or has the wrong type.
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
    named = arguments.text_columns()
    for key, column in named.items():
        check_text_column(features, key, column, where)
    columns = list(dict.fromkeys([image_column, *caption_columns, *filter(None, [id_column]), *named.values()]))
    for stream in streams:
        if missing := [column for column in columns if column not in stream.features]:
            raise RecipeError(
                f"{where} has parts with different columns: one has no {missing[0]!r}. Expected the same columns in "
                "all parts of a sum of splits."
            )
    return ShardedSplit(
        [stream.select_columns(columns) for stream in streams],
        arguments,
        image_column,
        caption_columns,
        _count(streams, arguments) if id_column is None else None,
        title,
        trusted,
        name,
    )


def _own_files(arguments: CaptionDataArguments) -> str:
    """The prefix of the paths of a data set's own files."""
    directory = Path(str(arguments.dataset_name)).expanduser()
    return f"{directory.resolve()}/" if directory.is_dir() else f"hf://datasets/{arguments.dataset_name}@"


def _open(arguments: CaptionDataArguments, split: str) -> IterableDataset:
    name = str(arguments.dataset_name)
    if tables.is_directory(arguments):
        name = str(Path(name).expanduser().resolve())
        if (kind := tables.kind_of_folder(arguments)) not in STREAMED:
            raise RecipeError(
                f"{name} cannot be streamed: it holds {kind}. Expected {', '.join(filter(None, STREAMED))}. Leave "
                "streaming out."
            )
    try:
        stream = load_source(arguments, name, split, streaming=True)
        stream = stream if stream.features else stream._resolve_features()
        return stream.decode(False)
    except (OSError, ValueError, TypeError, RuntimeError, DatasetsError) as error:
        raise RecipeError(tables.explain_load_error(error, arguments, split)) from error


def _count(streams: list[IterableDataset], arguments: CaptionDataArguments) -> int | None:
    """The number of images of all `streams` to train on, if the data set's metadata has it.

    Images are held out one by one while reading, so that their number is only known about.
    """
    counts = [
        stream.info.splits[stream.split].num_examples if stream.info.splits and stream.split else 0
        for stream in streams
    ]
    return round(sum(counts) * (1 - sum(arguments.held_out().values()))) if all(counts) else None


def read_directory(arguments: CaptionDataArguments, split: str, max_images: int | None) -> SplitColumns:
    """Read one split of a directory into the cache of `datasets`, without the other splits.

    Raises:
        RecipeError: The split cannot be opened (see `open_stream`), or rows of an image are not adjacent.
    """
    plain = replace(arguments, train_split=split, validation_fraction=None, test_fraction=None)
    return _read_stream(open_stream(plain), max_images)


def fetch_role(arguments: CaptionDataArguments, role: str, max_images: int | None) -> Dataset:
    """Read the images of a stream that are held out for a role into the cache of `datasets`.

    Raises:
        RecipeError: The split cannot be opened (see `open_stream`), or no image is held out.
    """
    source = replace(open_stream(arguments), role=role)
    where = f"{source.title}, images held out for {role!r},"
    return join_columns(_read_stream(source, max_images), where)


def _read_stream(source: ShardedSplit, max_images: int | None) -> SplitColumns:
    """Read the first images of shards into the cache of `datasets`."""
    arguments = source.arguments
    directory = Path(str(arguments.dataset_name)).expanduser()
    found = sorted(directory.rglob("*")) if directory.is_dir() else []
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    # Part of the cache key: otherwise `datasets` would return old rows after files have changed.
    stamp = hashlib.sha256(repr(files).encode()).hexdigest()
    id_column = arguments.image_id_column
    features = {"image": Image(decode=False), "captions": List(Value("string"))}
    features |= {"image_id": source.tables[0].features[id_column]} if id_column else {}
    features |= {key: Value("string") for key in arguments.text_columns()}
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
    texts = {key: rows[key][:] for key in arguments.text_columns()}
    return SplitColumns(rows.select_columns(["image"]), rows["captions"][:], ids, texts)


def _yield_images(source: ShardedSplit, max_images: int | None, stamp: str) -> Iterator[dict[str, Any]]:
    images = chain.from_iterable(map(source.read, range(source.shards)))
    for image in islice(images, max_images):
        row = {"image": source.picture(image.picture) if image.picture else None, "captions": image.captions}
        row |= {} if image.image_id is None else {"image_id": image.image_id}
        yield row | image.texts
