"""Write a data set with a new column of captions: parquet files with all its other columns as they are.

A shard is done when its file has a caption in every row. The next run tries the other rows again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value
from huggingface_hub import DatasetCardData, HfApi

from blip_recipe.card.rendering import format_code
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.columns import choose_image_column
from blip_recipe.data.images import check_picture
from blip_recipe.data.listing import IMAGE_EXTENSIONS, printable
from blip_recipe.data.storage import atomic_file, read_json, remove_leftovers, write_json
from blip_recipe.data.tables import images_of, load_table, path_root
from blip_recipe.errors import RecipeError, SaveError
from blip_recipe.hub.publishing import PushResult, check_repo_id, preflight, push_dataset

if TYPE_CHECKING:
    from blip_recipe.captioning.writing import CaptionWriter

RUN = "caption_run.json"
"""File in the output directory with the settings of the run."""

SHARD_ROWS = 1000
"""Default number of rows of a parquet file."""

ROW_GROUP = 100
"""Rows of a parquet row group. It is small, because readers hold its pictures in memory."""

COLUMNS: dict[str, tuple[str, Any]] = {
    "caption": ("", Value("string")),
    "score": ("_score", Value("float64")),
    "match": ("_match", Value("float64")),
    "captions": ("_all", List(Value("string"))),
    "scores": ("_all_scores", List(Value("float64"))),
    "matches": ("_all_matches", List(Value("float64"))),
}
"""For each field of a caption, the end of its column's name and the type of the column."""


@dataclass(frozen=True)
class Source:
    """A split whose pictures are captioned.

    Attributes:
        name: The data set.
        split: The split.
        rows: All columns.
        pictures: One column `image` of undecoded pictures, with checked paths.
        embedded: One such data set for each column whose pictures are put into the parquet files.
    """

    name: str
    split: str
    rows: Dataset
    pictures: Dataset
    embedded: Mapping[str, Dataset]


def read_source(arguments: CaptionDataArguments) -> Source:
    """Read the split `train_split` of a data set.

    Raises:
        RecipeError: The data set, split or column does not exist, or the column has the wrong type.
    """
    name, split = str(arguments.dataset_name), arguments.train_split
    table = load_table(arguments, split)
    where, root = f"{name}, split {split!r},", path_root(arguments, table)
    column = choose_image_column(table.rows.features, arguments.image_column or table.image_column, where)
    pictures = images_of(table.rows, column, root, where, name)
    # Paths of a file or folder on this disk mean nothing elsewhere: the pictures are put into the parquet files.
    rows = table.rows if table.root is None else table.rows.cast_column(column, Image())
    embedded = {
        each: pictures if each == column else images_of(rows, each, root, where, name)
        for each, feature in rows.features.items()
        if isinstance(feature, Image)
    }
    return Source(name, split, rows, pictures, embedded)


@dataclass(frozen=True)
class CaptionedTable:
    """A directory of parquet files with the rows of a source and the columns of their captions.

    Attributes:
        source: The source.
        directory: The directory.
        column: The name of the column of captions.
        fields: The fields that are written, of those in `COLUMNS`.
        shard_rows: Number of rows of a file.
    """

    source: Source
    directory: Path
    column: str
    fields: Sequence[str]
    shard_rows: int = SHARD_ROWS

    @property
    def names(self) -> dict[str, str]:
        """The column of each field."""
        return {field: self.column + COLUMNS[field][0] for field in self.fields}

    @property
    def features(self) -> Features:
        """All columns: those of the source, then those of the captions."""
        added = {name: COLUMNS[field][1] for field, name in self.names.items()}
        kept = {name: feature for name, feature in self.source.rows.features.items() if name not in added}
        return Features(kept | added)

    @property
    def paths(self) -> list[Path]:
        """The parquet files of all shards."""
        count = -(-len(self.source.rows) // self.shard_rows)
        split = (re.findall(r"\w+", self.source.split) or ["train"])[0]  # without a slice
        return [self.directory / "data" / f"{split}-{number:05}-of-{count:05}.parquet" for number in range(count)]

    def check(self, settings: Mapping[str, Any], *, overwrite_column: bool) -> None:
        """Check that the output directory is new, or that of a run with these settings; write nothing.

        Raises:
            RecipeError: A column exists, or the directory belongs to a run with other settings.
        """
        taken = [name for name in self.names.values() if name in self.source.rows.features]
        if taken and not overwrite_column:
            raise RecipeError(
                f"{self.source.name} has a column {taken[0]!r} already: name another with --caption_column_name, or "
                "replace it with --overwrite_column."
            )
        settings = self._with_source(settings)
        before = read_json(self.directory / RUN)
        changed = [
            f"{key} (was {before.get(key)!r}, is {settings.get(key)!r})"
            for key in sorted({*before, *settings})
            if before and before.get(key) != settings.get(key)
        ]
        if changed:
            raise RecipeError(
                f"--output {self.directory} has captions of a run with another {', '.join(changed)}. Name another "
                "directory, or undo the change to resume that run."
            )
        is_new = not self.directory.exists() or (self.directory.is_dir() and not any(self.directory.iterdir()))
        if not before and not is_new:
            raise RecipeError(f"--output {self.directory} exists, and is not from this command: name a new directory.")

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Record the settings in the output directory, and delete temporary files of a killed run.

        Raises:
            RecipeError: The directory cannot be written.
        """
        try:
            write_json(self.directory / RUN, self._with_source(settings))
        except OSError as error:
            raise RecipeError(f"--output {self.directory} cannot be written: {error.strerror}.") from error
        remove_leftovers(self.directory / "data")

    def _with_source(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {**settings, "rows": len(self.source.rows), "columns": list(self.source.rows.features)}

    def find_pending(self) -> list[int]:
        """The numbers of the shards that have no file, or rows without a caption."""
        return [number for number, path in enumerate(self.paths) if not path.exists() or self._count_missing(path)]

    def write_shard(self, number: int, writer: CaptionWriter, batch_size: int, bar: Any) -> None:
        """Caption the rows of a shard that have no caption yet, and write its file.

        Raises:
            SaveError: The file cannot be written.
        """
        path = self.paths[number]
        first = number * self.shard_rows
        last = min(len(self.source.rows), first + self.shard_rows)
        found = self._read_fields(path) if path.exists() else [{} for _ in range(first, last)]
        pictures = (
            (row, self.source.pictures[first + row]["image"])
            for row, fields in enumerate(found)
            if fields.get("caption") is None
        )
        count = sum(fields.get("caption") is None for fields in found)
        for row, fields in writer.write_all(pictures, batch_size, count):
            if isinstance(fields, Exception):
                fault = str(fields) or type(fields).__name__
                bar.write(printable(f"not captioned: row {first + row}: {fault}"), file=sys.stderr)
            else:
                found[row] = fields
            bar.update()
        try:
            with atomic_file(path, flush=True) as file:
                pq.write_table(self._assemble(first, last, found), file, row_group_size=ROW_GROUP)
        except OSError as error:
            raise SaveError(
                f"{path} could not be written: {error}. The other files are complete: make room and run the same "
                "command again to resume."
            ) from error

    def _read_fields(self, path: Path) -> list[dict[str, Any]]:
        """The fields of each row of a shard."""
        table = pq.read_table(path, columns=list(self.names.values()))
        fields = {name: field for field, name in self.names.items()}
        return [{fields[name]: value for name, value in row.items()} for row in table.to_pylist()]

    def _assemble(self, first: int, last: int, found: Sequence[Mapping[str, Any]]) -> pa.Table:
        """The rows from `first` to `last`, with pictures embedded and the columns of captions."""
        features = self.features
        source = self.source.rows.with_format("arrow")[first:last]
        columns = {name: source.column(name) for name in features if name in self.source.rows.features}
        for name in self.source.embedded.keys() & columns.keys():
            columns[name] = pa.chunked_array(list(self._embed(name, first, last)), type=Image.pa_type)
        for field, name in self.names.items():
            values = [fields.get(field) for fields in found]
            columns[name] = pa.array(values, type=features.arrow_schema.field(name).type)
        return pa.table({name: columns[name] for name in features}).cast(features.arrow_schema)

    def _embed(self, name: str, first: int, last: int) -> Iterator[pa.Array]:
        """The pictures of a column with the bytes of their files. Pictures without a local file stay as they are."""
        for start in range(first, last, ROW_GROUP):  # an array holds at most 2 GB
            pictures = self.source.embedded[name][start : min(last, start + ROW_GROUP)]["image"]
            yield pa.array([_with_bytes(picture) for picture in pictures], type=Image.pa_type)

    def _count_missing(self, path: Path) -> int:
        return pq.read_table(path, columns=[self.column]).column(0).null_count

    def count_missing(self) -> int:
        """The number of rows without a caption."""
        return sum(map(self._count_missing, self.paths))

    def write_card(self, model: str, options: Mapping[str, Any]) -> None:
        """Write the card of the data set as `README.md`."""
        source, missing = shown(self.source.name), self.count_missing()
        on_hub = not Path(self.source.name).expanduser().exists()
        metadata = DatasetCardData(
            task_categories=["image-to-text"], tags=[TAG], source_datasets=[source] if on_hub else None
        )
        lines = [
            f"# {shown(str(self.directory.resolve()))}",
            f"The pictures of {format_code(source)}, split {format_code(self.source.split)}, with captions by "
            f"{format_code(shown(model))}.",
            f"- Rows: {len(self.source.rows):,}"
            + (f", of which {missing:,} have no caption, because their picture cannot be read." if missing else "."),
            f"- The captions are in {format_code(self.column)}. The other columns are those of the source.",
            "- A model wrote the captions. Nobody has checked them.",
            *(
                f"- {format_code(name)}: {format_code(shown(value) if name == 'match' else str(value))}"
                for name, value in options.items()
            ),
        ]
        text = "\n".join([lines[0], "", lines[1], "", *lines[2:], ""])
        (self.directory / "README.md").write_text(f"---\n{metadata.to_yaml()}\n---\n\n{text}", encoding="utf-8")

    def push(self, repo_id: str, *, private: bool | None) -> PushResult:
        """Push the parquet files and the card in one commit.

        Raises:
            PushError: The push failed.
        """
        files = {f"data/{path.name}": path for path in self.paths} | {"README.md": self.directory / "README.md"}
        shards = re.sub(r"-\d{5}-of-\d{5}", "-*-of-*", next(iter(files)))
        return push_dataset(
            files, repo_id, private=private, stale=(shards,), tag=TAG, message="Upload captions", api=HfApi()
        )


TAG = "blip_recipe"
"""The tag of our cards. A card on the Hub that lacks it is somebody else's, and is kept."""


def preflight_dataset(repo_id: str, private: bool | None) -> str:
    """Check that a data set can be pushed, without creating anything; returns its full name.

    Raises:
        RecipeError: The name is invalid, or the repository cannot be written.
    """
    check_repo_id(repo_id, "--push_to_hub")
    return preflight(repo_id, repo_id, private, HfApi(), repo_type="dataset")


def shown(name: str) -> str:
    """The name of a model or data set on a card: a Hub id, or the last part of a local path."""
    path = Path(name).expanduser()
    return path.name if path.exists() else name


def _with_bytes(picture: dict[str, Any] | None) -> dict[str, Any] | None:
    """An undecoded picture with the bytes of its local file, under the file's name alone."""
    path = (picture or {}).get("path")
    if picture is None or path is None or picture["bytes"] is not None or "://" in path:
        return picture
    file = Path(path)
    content = file.read_bytes() if file.is_file() else None  # a row without a picture has no caption, and is reported
    # A data set may name any file, which must not be published with the pictures.
    if content is not None and file.suffix.lower() not in IMAGE_EXTENSIONS and check_picture(content):
        content = None
    return {"bytes": content, "path": file.name}
