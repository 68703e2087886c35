"""Read a data set of any kind as named shards that are opened one by one, so a broken shard does not affect others."""

from __future__ import annotations

import copy
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import datasets
import fsspec
from datasets import Dataset, DatasetBuilder, IterableDataset
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetsError

from blip_recipe.data import tables
from blip_recipe.data.load import load_split
from blip_recipe.data.metadata import check_metadata
from blip_recipe.data.rows import parse_split
from blip_recipe.data.shards import STREAMED, ShardedSplit, StreamedRow, choose_columns
from blip_recipe.data.tars import read_by_sample
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from blip_recipe.data.arguments import CaptionDataArguments

FOLDER_SHARD = 1000
"""Number of images per shard of an imagefolder, which has no shards of its own."""


READ_FAULTS = (
    *(OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError),
    *(tarfile.TarError, zlib.error, DatasetsError),
)
"""Exceptions that parsers raise for broken files."""


@dataclass(frozen=True)
class Shard:
    """A part of the data set that is processed as a unit.

    Attributes:
        number: Its index.
        name: Its file, relative to the data set; for an imagefolder, its range of images.
        images: Number of images to use; None for all.
    """

    number: int
    name: str
    images: int | None = None


class BadShardError(RecipeError):
    """A shard cannot be read. The message says why."""


class Source:
    """A split of a Hub data set or directory as shards.

    Args:
        arguments: The data keys. `train_split` is the split.
        max_samples: Use only the first images.

    Attributes:
        kind: The output format: tars for tars, parquet for all other formats.
        shards: All shards in order.

    Raises:
        RecipeError: The data set or split does not exist.
    """

    def __init__(self, arguments: CaptionDataArguments, max_samples: int | None = None) -> None:
        self.arguments = arguments
        self.rows = read_rows(arguments)
        if self.rows is None:
            self.builder = open_builder(arguments)
            known = list(map(str, self.builder.config.data_files or ()))
            self.splits = parse_split(arguments.train_split, known, str(arguments.dataset_name))
        else:
            id_column = arguments.image_id_column and "image_id"
            self.arguments = replace(
                arguments, image_column="image", caption_column=["captions"], image_id_column=id_column
            )
        form = "imagefolder" if self.rows is not None else self.builder.name
        self.kind: Literal["webdataset", "parquet"] = "webdataset" if form == "webdataset" else "parquet"
        self.is_folder = form == "imagefolder"
        self._files = [] if self.is_folder else self._list_files()
        self.shards = self._list_images() if self.is_folder else self._list_names()
        if max_samples is not None:
            self.shards = self._first(max_samples)

    def open(self, shard: Shard) -> ShardedSplit:
        """Open a shard. Only what is needed to know its columns is read.

        Raises:
            BadShardError: The shard is broken, or lacks the columns of the recipe.
        """
        try:
            if self.rows is not None:
                streams = [self.rows.to_iterable_dataset()]
            elif self.is_folder:
                streams = [self._stream(self.builder, split) for split in self.splits]
            else:
                split, file, origin = self._files[shard.number]
                if file.endswith(".tar"):
                    check_end_of_tar(file)
                builder = copy.deepcopy(self.builder)
                builder.config.data_files = DataFilesDict({split: DataFilesList([file], origin)})
                streams = [self._stream(builder, split)]
            return choose_columns(streams, self.arguments, shard.name)
        except RecipeError as error:
            raise BadShardError(str(error)) from error
        except READ_FAULTS as error:
            raise BadShardError(f"{shard.name} cannot be read ({type(error).__name__}: {error}).") from error

    def read(self, shard: Shard, rows: ShardedSplit) -> Iterator[StreamedRow]:
        """Read the images of a shard in order.

        Args:
            shard: The shard.
            rows: The opened shard.

        Raises:
            BadShardError: The shard is broken.
        """
        images = chain.from_iterable(map(rows.read, range(rows.shards)))
        first = shard.number * FOLDER_SHARD if self.is_folder else 0
        count = FOLDER_SHARD if self.is_folder and shard.images is None else shard.images
        chosen = enumerate(islice(images, first, None if count is None else first + count), first)
        try:
            # An imagefolder may have several metadata files, so an image is named by its index among all.
            yield from (image._replace(row=row) if self.is_folder else image for row, image in chosen)
        except (RecipeError, *READ_FAULTS) as error:
            raise BadShardError(str(error) or type(error).__name__) from error

    def _stream(self, builder: DatasetBuilder, split: str) -> IterableDataset:
        stream = read_by_sample(builder, self.arguments, split).as_streaming_dataset(split=split)
        return (stream if stream.features else stream._resolve_features()).decode(False)

    def _list_files(self) -> list[tuple[str, str, list[Any]]]:
        """The split, path and version of each file."""
        files = self.builder.config.data_files
        return [
            (split, str(file), [origin])
            for split in self.splits
            for file, origin in zip(files[split], files[split].origin_metadata, strict=True)
        ]

    def _list_names(self) -> list[Shard]:
        base = f"{self.builder.base_path or ''}".rstrip("/") + "/"
        names = [file.removeprefix(base) for _, file, _ in self._files]
        # For a Hub data set: the path in the repository, without the revision.
        names = [name.split("@", 1)[-1].split("/", 1)[-1] if "://" in name else name for name in names]
        return [Shard(number, str(PurePosixPath(name))) for number, name in enumerate(names)]

    def _list_images(self) -> list[Shard]:
        rows = self.open(Shard(0, str(self.arguments.dataset_name)))
        count = sum(1 for shard in range(rows.shards) for _ in rows.read(shard))
        starts = range(0, count, FOLDER_SHARD)
        return [
            Shard(number, f"images {first:,} to {min(count, first + FOLDER_SHARD) - 1:,}")
            for number, first in enumerate(starts)
        ]

    def _first(self, max_samples: int) -> list[Shard]:
        """The shards of the first images, with the number of images to use from each."""
        chosen: list[Shard] = []
        left = max_samples
        for shard in self.shards:
            if left <= 0:
                break
            try:
                images = sum(1 for _ in islice(self.read(shard, self.open(shard)), left))
            except BadShardError:
                images = 0  # the error is reported when the shard is processed
            chosen.append(Shard(shard.number, shard.name, min(images, left) or None))
            left -= images
        return chosen


def read_rows(arguments: CaptionDataArguments) -> Dataset | None:
    """Read a local file, or a folder that `datasets` cannot read, as images with texts; None for other data sets.

    Raises:
        RecipeError: It cannot be read.
    """
    path = Path(str(arguments.dataset_name)).expanduser()
    if not path.exists() or (path.is_dir() and tables.kind_of_folder(arguments) in STREAMED):
        return None
    return load_split(arguments, arguments.train_split)


def check_end_of_tar(file: str) -> None:
    """Check that a tar is not truncated. Readers do not notice it if the file ends at a header.

    Raises:
        tarfile.ReadError: The empty block at the end is missing.
    """
    with fsspec.open(file, "rb") as opened:
        opened.seek(0, os.SEEK_END)
        opened.seek(max(0, opened.tell() - tarfile.BLOCKSIZE))
        if opened.read() != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is truncated: expected empty blocks at the end")


def open_builder(arguments: CaptionDataArguments) -> DatasetBuilder:
    """Get the builder of the data set from `datasets`.

    Raises:
        RecipeError: The data set does not exist.
    """
    name = str(arguments.dataset_name)
    if tables.is_directory(arguments):
        name = str(Path(name).expanduser().resolve())
        check_metadata(Path(name))
    try:
        return datasets.load_dataset_builder(name, arguments.dataset_config_name, revision=arguments.dataset_revision)
    except (OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, DatasetsError) as error:
        raise RecipeError(tables.explain_load_error(error, arguments, arguments.train_split)) from error
