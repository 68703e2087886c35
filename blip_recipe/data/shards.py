"""Read a split lazily from shards (parquet files, webdataset tars or an imagefolder), starting at any row.

What a row says is read by the `RowTexts` of a task; pictures, ids and held-out images are the same for all tasks.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import fsspec
from datasets import Dataset, Features, Image, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError, DatasetsError

from blip_recipe.data import tables
from blip_recipe.data.columns import choose_image_column
from blip_recipe.data.holdout import fingerprint, role_of
from blip_recipe.data.images import check_picture, wrap_image_errors
from blip_recipe.data.layouts import LISTED, METADATA, SHARDS
from blip_recipe.data.row_texts import CaptionTexts, RowTexts
from blip_recipe.data.tars import load_source
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blip_recipe.data.arguments import DataArguments

    ChooseTexts = Callable[[Features, Any, str], RowTexts]
    OpenSplit = Callable[[Any], "ShardedSplit"]

SAMPLE = 1000
"""Number of images or questions that `ShardedSplit.sample` reads before training."""

STREAMED = (SHARDS, METADATA, LISTED, None)
"""The kinds of folders that `datasets` streams; None is a kind that only `datasets` knows."""

READ_AT_ONCE = 16
"""Number of rows read from a shard at once."""


class StreamedRow(NamedTuple):
    """An image with its texts: its first row, its id if it has one, the picture as stored, and what `RowTexts` read."""

    row: int
    image_id: int | str | None
    picture: Any
    texts: dict[str, Any]


@dataclass(frozen=True)
class ShardedSplit:
    """A split as shards that can be read from any row on.

    Args:
        tables: The streams of `datasets`, one for each part of a sum of splits.
        arguments: The recipe's data keys.
        image_column: The column of pictures.
        texts: Reads the texts of the task.
        images: The number of images, or of questions about them, if the source tells it.
        title: Name of the split in error messages.
        trusted: Prefix of the paths of the data set's own files.
        name: Name of the only shard in error messages, if it has one.
        role: Which images to read if some are held out: `train`, `eval` or `test`.
        scored: Digests of the pictures that are scored: they are left out of the training.
    """

    tables: list[IterableDataset]
    arguments: DataArguments
    image_column: str
    texts: RowTexts
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

    def read(self, shard: int, first_row: int = 0) -> Iterator[StreamedRow]:
        """Read the images of a shard in order. If the task joins rows, adjacent rows with the same id are one image.

        Raises:
            RecipeError: The shard is broken, rows of an image are not adjacent or contradict each other, or texts are
                not text.
        """
        column, shares = self.texts.id_column, self.arguments.held_out()
        for rows in self._group(enumerate(self._rows(shard, first_row), first_row), shard):
            row, first = rows[0]
            picture = first[self.image_column]
            texts = self.texts.read([each for _, each in rows], partial(self._where_of, shard, rows))
            if shares and role_of(fingerprint(self.picture(picture)), shares, self.arguments.split_seed) != self.role:
                continue
            yield StreamedRow(row, None if column is None else first[column], picture, texts)

    def _group(
        self, numbered: Iterator[tuple[int, dict[str, Any]]], shard: int
    ) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """Put the adjacent rows of an image together, if the task joins them."""
        column = self.texts.id_column
        if column is None:
            yield from ([each] for each in numbered)
            return
        joins, seen = self.texts.joins_rows, set[int | str]()
        for image_id, group in groupby(numbered, lambda each: each[1][column]):
            rows = list(group)
            self._check_id(image_id, column, seen if joins else set(), self.where(shard, rows[0][0]))
            yield from [rows] if joins else ([each] for each in rows)

    def _check_id(self, image_id: Any, column: str, seen: set[int | str], where: str) -> None:
        """Check that there is an id, that it is new in its shard, and remember it."""
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
        """Describe the number of shards, and of images or questions."""
        images = f"{self.images:,}" if self.images else "an unknown number of"
        return f"{self.shards:,} shards with {images} {self.texts.unit}s"

    def where(self, shard: int, row: int) -> str:
        """Name a row in error messages."""
        return f"{self._where(shard)}, row {row}"

    def _where_of(self, shard: int, rows: list[tuple[int, dict[str, Any]]], index: int) -> str:
        return self.where(shard, rows[index][0])

    def _where(self, shard: int) -> str:
        if self.name is not None:
            return self.name
        return f"{self.title}, shard {shard}"

    def sample(self) -> Dataset:
        """Read some rows with their texts, in the format of the task. Only the first row has a (readable) picture.

        Raises:
            RecipeError: The split is empty, or its rows are wrong.
        """
        found = list(islice((image for shard in range(self.shards) for image in self.read(shard)), SAMPLE))
        if not found:
            raise RecipeError(f"{self.title}, is empty: expected at least one picture with its texts.")
        good = next((n for n, each in enumerate(found) if check_picture(self.picture(each.picture)) is None), 0)
        found.insert(0, found.pop(good))
        numbers: dict[Any, int] = {}
        ids = [each.row if each.image_id is None else each.image_id for each in found]
        cells = {
            "image": [self.picture(found[0].picture), *[None] * (len(found) - 1)],
            "image_id": [numbers.setdefault(each, len(numbers)) for each in ids]
            if not self.texts.joins_rows
            else list(range(len(found))),
            **{name: [each.texts[name] for each in found] for name in self.texts.features},
        }
        features = {"image": Image(decode=False), "image_id": Value("int64"), **self.texts.features}
        return Dataset.from_dict(cells, features=Features(features))


def open_stream(arguments: DataArguments, choose: ChooseTexts = CaptionTexts.choose) -> ShardedSplit:
    """Open the training split as shards. Only what is needed to know the columns is read.

    Args:
        arguments: The recipe's data keys.
        choose: Chooses the columns of the task's texts; by default those of captions.

    Raises:
        RecipeError: The data set, split or column does not exist.
    """
    streams = [_open(arguments, name.strip()) for name in arguments.train_split.split("+")]
    return choose_columns(streams, arguments, choose=choose)


def choose_columns(
    streams: list[IterableDataset],
    arguments: DataArguments,
    name: str | None = None,
    title: str | None = None,
    choose: ChooseTexts = CaptionTexts.choose,
) -> ShardedSplit:
    """Choose the columns of streams with undecoded pictures, and combine them into one split.

    Args:
        streams: The streams of the parts of a sum of splits.
        arguments: The recipe's data keys.
        name: Name of the only shard in error messages, if it has one.
        title: Name of a data set passed by the caller, in error messages. Its files on the Hub are trusted.
        choose: Chooses the columns of the task's texts; by default those of captions.

    Raises:
        RecipeError: A column is missing or has the wrong type.
    """
    features = streams[0].features
    trusted = "hf://datasets/" if title else _own_files(arguments)
    title = title or f"{arguments.dataset_name}, split {arguments.train_split!r}"
    where = f"{name or title},"
    image_column = choose_image_column(features, arguments.image_column, where)
    feature = features[image_column]
    is_struct = isinstance(feature, dict) and feature.keys() <= {"bytes", "path"}
    is_value = isinstance(feature, Value) and ("string" in feature.dtype or "binary" in feature.dtype)
    if not (isinstance(feature, Image) or is_struct or is_value):
        raise RecipeError(f"{where} column {image_column!r} holds {feature}: expected pictures, bytes, paths or URLs.")
    texts = choose(features, arguments, where)
    columns = list(dict.fromkeys([image_column, *filter(None, [texts.id_column]), *texts.columns]))
    for stream in streams:
        if missing := [column for column in columns if column not in stream.features]:
            raise RecipeError(
                f"{where} has parts with different columns: one has no {missing[0]!r}. Expected the same columns in "
                "all parts of a sum of splits."
            )
    counted = texts.id_column is None or not texts.joins_rows
    images = _count(streams, arguments) if counted else None
    selected = [stream.select_columns(columns) for stream in streams]
    return ShardedSplit(selected, arguments, image_column, texts, images, title, trusted, name)


def _own_files(arguments: DataArguments) -> str:
    """The prefix of the paths of a data set's own files."""
    directory = Path(str(arguments.dataset_name)).expanduser()
    return f"{directory.resolve()}/" if directory.is_dir() else f"hf://datasets/{arguments.dataset_name}@"


def _open(arguments: DataArguments, split: str) -> IterableDataset:
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


def _count(streams: list[IterableDataset], arguments: DataArguments) -> int | None:
    """The number of images of all `streams` to train on, if the data set's metadata has it.

    Images are held out one by one while reading, so that their number is only known about.
    """
    counts = [
        stream.info.splits[stream.split].num_examples if stream.info.splits and stream.split else 0
        for stream in streams
    ]
    return round(sum(counts) * (1 - sum(arguments.held_out().values()))) if all(counts) else None


def read_directory(
    arguments: DataArguments, split: str, max_rows: int | None, open_split: OpenSplit = open_stream
) -> Dataset:
    """Read one split of a directory into the cache of `datasets`, without the other splits.

    Args:
        arguments: The recipe's data keys.
        split: The split.
        max_rows: Read only the first images, or the first questions about them.
        open_split: Opens the split that the arguments call the training split.

    Raises:
        RecipeError: The split cannot be opened (see `open_stream`), or rows of an image are not adjacent.
    """
    plain = replace(arguments, train_split=split, validation_fraction=None, test_fraction=None)
    return _fetch(open_split(plain), max_rows, f"{arguments.dataset_name}, split {split!r},")


def fetch_role(
    arguments: DataArguments, role: str, max_rows: int | None, open_split: OpenSplit = open_stream
) -> Dataset:
    """Read the images of a stream that are held out for a role into the cache of `datasets`.

    Raises:
        RecipeError: The split cannot be opened (see `open_stream`), or no image is held out.
    """
    source = replace(open_split(arguments), role=role)
    return _fetch(source, max_rows, f"{source.title}, images held out for {role!r},")


def _fetch(source: ShardedSplit, max_rows: int | None, where: str) -> Dataset:
    """Read the first rows of shards into the cache of `datasets`, in the format of the task's `load_split`."""
    directory = Path(str(source.arguments.dataset_name)).expanduser()
    found = sorted(directory.rglob("*")) if directory.is_dir() else []
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    # Part of the cache key: otherwise `datasets` would return old rows after files have changed.
    stamp = hashlib.sha256(repr(files).encode()).hexdigest()
    id_column, names = source.texts.id_column, list(source.texts.features)
    features = {"image": Image(decode=False), **source.texts.features}
    features |= {"image_id": source.tables[0].features[id_column]} if id_column else {}
    try:
        rows = Dataset.from_generator(
            _yield_rows,
            features=Features(features),
            gen_kwargs={"source": source, "max_rows": max_rows, "stamp": stamp},
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, RecipeError):
            raise error.__cause__ from None
        raise
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise RecipeError(f"{where} is empty: expected at least one picture with its texts.") from error
    ids = rows["image_id"][:] if id_column else None
    return source.texts.join(rows.select_columns(["image"]), ids, {name: rows[name][:] for name in names}, where)


def _yield_rows(source: ShardedSplit, max_rows: int | None, stamp: str) -> Iterator[dict[str, Any]]:
    images = chain.from_iterable(map(source.read, range(source.shards)))
    for image in islice(images, max_rows):
        row = {"image": source.picture(image.picture) if image.picture else None, **image.texts}
        yield row | ({} if image.image_id is None else {"image_id": image.image_id})
