"""Write the results of a shard: pictures with their kept texts, and a table of all scored texts.

Tars give tars; all other formats give parquet files. Both have one row per image with all its kept texts, and can be
used as `dataset_name` without further keys.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from blip_recipe.data.listing import IMAGE_EXTENSIONS
from blip_recipe.data.storage import atomic_file

if TYPE_CHECKING:
    from blip_recipe.capfilt.judging import JudgedImage
    from blip_recipe.capfilt.source import Shard

DATA, JUDGED = "data", "judged"
"""Folders of the output directory."""

ROW_GROUP = {DATA: 100, JUDGED: 10_000}
"""Rows per parquet row group. It is small for pictures, because rows are held in memory."""

DATA_FEATURES = Features(
    {
        "image": Image(),
        "captions": List(Value("string")),
        "kinds": List(Value("string")),
        "scores": List(Value("float64")),
        "source_shard": Value("string"),
        "source_row": Value("int64"),
        "source_name": Value("string"),
        "source_id": Value("string"),
    }
)

JUDGED_FEATURES = Features(
    {
        "source_shard": Value("string"),
        "source_row": Value("int64"),
        "source_name": Value("string"),
        "source_id": Value("string"),
        "kind": Value("string"),
        "text": Value("string"),
        "score": Value("float64"),
        "kept": Value("bool"),
    }
)


class ParquetWriter:
    """Write rows to a parquet file for `datasets`. The same rows give the same bytes."""

    def __init__(self, file: BinaryIO, features: Features, row_group: int) -> None:
        self.schema, self.row_group = features.arrow_schema, row_group
        self.writer = pq.ParquetWriter(file, self.schema)
        self.rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self.rows.append(row)
        if len(self.rows) == self.row_group:
            self._flush()

    def close(self) -> None:
        """Write the remaining rows, and close the file."""
        try:
            self._flush()
        finally:
            self.writer.close()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []


class TarWriter:
    """Write rows of `DATA_FEATURES` to a webdataset tar: a picture, its captions line by line, and the rest as JSON."""

    def __init__(self, file: BinaryIO, shard: Shard) -> None:
        self.tar = tarfile.open(fileobj=file, mode="w")  # noqa: SIM115 - closed by `close`
        self.shard = shard

    def write(self, row: dict[str, Any]) -> None:
        """Add a row. Its files are named by its shard and row in the source."""
        key = f"{self.shard.number:05}_{row['source_row']:08}"
        facts = {name: value for name, value in row.items() if name != "image" and value is not None}
        self._add(f"{key}.{extension_of(row['image']['path'])}", row["image"]["bytes"])
        self._add(f"{key}.txt", "\n".join(row["captions"]).encode())
        self._add(f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())

    def close(self) -> None:
        """Close the tar."""
        self.tar.close()

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self.tar.addfile(member, io.BytesIO(content))


class ShardOutput:
    """Write the images of a shard."""

    def __init__(self, data: ParquetWriter | TarWriter, judged: ParquetWriter, shard: Shard) -> None:
        self.data, self.judged, self.shard = data, judged, shard
        self.images = 0

    def write(self, image: JudgedImage) -> None:
        """Add all scored texts of an image, and the image itself if any text is kept."""
        source = {
            "source_shard": self.shard.name,
            "source_row": image.row,
            "source_name": image.name,
            "source_id": None if image.image_id is None else str(image.image_id),
        }
        for text in image.texts:
            self.judged.write(source | text._asdict())
        if kept := image.kept:
            self.images += 1
            facts = {
                "captions": [each.text for each in kept],
                "kinds": [each.kind for each in kept],
                "scores": [each.score for each in kept],
            }
            self.data.write({"image": {"bytes": image.content, "path": image.name}} | facts | source)


def extension_of(name: str | None) -> str:
    """The extension of a picture in a tar: that of its name in the source, or `jpg` if it has none."""
    suffix = PurePosixPath(name or "").suffix
    return suffix[1:] if suffix.lower() in IMAGE_EXTENSIONS else "jpg"


def data_path(output_dir: Path, number: int, kind: Literal["webdataset", "parquet"]) -> Path:
    """The file of the kept images of a shard."""
    return output_dir / DATA / f"train-{number:05}.{'tar' if kind == 'webdataset' else 'parquet'}"


def judged_path(output_dir: Path, number: int) -> Path:
    """The file of all scored texts of a shard."""
    return output_dir / JUDGED / f"train-{number:05}.parquet"


@contextmanager
def write_shard(output_dir: Path, shard: Shard, kind: Literal["webdataset", "parquet"]) -> Iterator[ShardOutput]:
    """Open the output of a shard. Its files appear under their names only if the block ends without an error.

    A shard without kept images has no file of images, because `datasets` does not read empty tars.

    Args:
        output_dir: The output directory of the run.
        shard: The shard.
        kind: The format of the file of images.
    """
    images = data_path(output_dir, shard.number, kind)
    with ExitStack() as stack:
        judged_file = stack.enter_context(atomic_file(judged_path(output_dir, shard.number), flush=True))
        data_file = stack.enter_context(atomic_file(images, flush=True))
        judged = stack.enter_context(closing(ParquetWriter(judged_file, JUDGED_FEATURES, ROW_GROUP[JUDGED])))
        data: TarWriter | ParquetWriter = (
            TarWriter(data_file, shard)
            if kind == "webdataset"
            else ParquetWriter(data_file, DATA_FEATURES, ROW_GROUP[DATA])
        )
        stack.enter_context(closing(data))
        output = ShardOutput(data, judged, shard)
        yield output
    if not output.images:
        images.unlink()


def read_judged(output_dir: Path, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Read all scored texts of these shards, one row per text."""
    for number in numbers:
        for batch in pq.ParquetFile(judged_path(output_dir, number)).iter_batches():
            yield from batch.to_pylist()
