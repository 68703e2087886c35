"""Read folders of pictures with texts in `metadata` files, in text files beside the pictures, or in folder names."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from datasets import Dataset

from blip_recipe.data.columns import choose_image_column
from blip_recipe.data.layouts.json_files import read_lines
from blip_recipe.data.layouts.table import Record, Table, table_of, warn_left_out
from blip_recipe.data.layouts.text_files import read_records, read_text
from blip_recipe.data.listing import IMAGE_EXTENSIONS, URL
from blip_recipe.data.metadata import check_metadata
from blip_recipe.data.rows import join_first
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The split of each name of a folder, as in `datasets`."""

SIDECARS = (".txt", ".caption")
"""Extensions of text files with a picture's captions, the preferred one first."""

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SHARDS = (".parquet", ".arrow", ".tar")
"""Extensions of data that `datasets` reads."""
CAPTION_FILES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
"""Extensions of files that may list pictures and captions."""
IGNORED_FILES = ("readme.md", "license", "license.txt", "readme.txt", "requirements.txt", "recipe.json", "classes.txt")


@dataclass(frozen=True)
class Folder:
    """A folder and the files below it.

    Args:
        path: The folder.
        names: The names of its files relative to it, with slashes, sorted; hidden files are left out.
    """

    path: Path
    names: list[str]

    @cached_property
    def pictures(self) -> list[str]:
        """The names of pictures."""
        return [name for name in self.names if name.lower().endswith(IMAGE_EXTENSIONS)]

    @cached_property
    def metadata(self) -> list[str]:
        """The names of `metadata` files."""
        return [name for name in self.names if PurePosixPath(name).name in METADATA]

    @cached_property
    def sidecars(self) -> dict[str, str]:
        """The text file of each picture that has one."""
        there = set(self.names)
        stems = {name: name.rpartition(".")[0] for name in self.pictures}
        found = {name: [stem + each for each in SIDECARS if stem + each in there] for name, stem in stems.items()}
        return {name: texts[0] for name, texts in found.items() if texts}

    @cached_property
    def caption_files(self) -> list[str]:
        """The names of files that may list captions."""
        beside = set(self.sidecars.values()) | set(self.metadata)
        return [
            name
            for name in self.names
            if name.lower().endswith(CAPTION_FILES)
            and name not in beside
            and PurePosixPath(name).name.lower() not in IGNORED_FILES
        ]

    @property
    def zips(self) -> list[str]:
        """The names of zips."""
        return [name for name in self.names if name.lower().endswith(".zip")]

    @property
    def has_shards(self) -> bool:
        """Whether it holds parquet files, Arrow files or tars, which `datasets` reads."""
        return any(name.endswith(SHARDS) and name not in self.metadata for name in self.names)


def is_picture_folder(names: Sequence[str]) -> bool:
    """Whether files are pictures, or zips, without shards that `datasets` reads."""
    folder = Folder(Path(), list(names))
    return not folder.has_shards and bool(folder.pictures or folder.zips)


def list_folder(path: Path) -> Folder:
    """List the files below a folder, without hidden ones."""
    names = []
    for place, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        inside = Path(place).relative_to(path).as_posix()
        names += [name if inside == "." else f"{inside}/{name}" for name in files if not name.startswith(".")]
    return Folder(path, sorted(names))


def read_metadata(folder: Folder) -> Table:
    """Read `metadata.jsonl`, `metadata.csv` or `metadata.parquet` files; each path starts at the folder of its file.

    The path is under `file_name`, and resolved under `image`.
    """
    check_metadata(folder.path)
    records: list[Record] = []
    for name in folder.metadata:
        parent = PurePosixPath(name).parent
        records += [_place_picture(record, parent, folder.path / name) for record in _records_of(folder.path / name)]
    listed = {os.path.normpath(str(record["image"]).replace("\\", "/")) for record in records}
    unlisted = [name for name in folder.pictures if name not in listed]
    warn_left_out(folder.path, f"pictures are not in {folder.metadata[0]} and are left out", unlisted)
    if folder.sidecars:
        warn_left_out(
            folder.path,
            "text files beside pictures are not read, because there is metadata",
            [*folder.sidecars.values()],
        )
    return replace(_table_of_folder(records, folder), closed=True)


def _records_of(file: Path) -> list[Record]:
    if file.suffix == ".csv":
        return read_records(file)
    if file.suffix == ".parquet":
        return Dataset.from_parquet(str(file)).to_list()
    return read_lines(file).rows.to_list()


def _place_picture(record: Record, parent: PurePosixPath, file: Path) -> Record:
    """The record with its picture, relative to the whole folder, under `image`."""
    key = next((key for key in record if key == "file_name" or key.endswith("_file_name")), None)
    if key is None:
        raise RecipeError(
            f"{file} has no column file_name: expected the path of a picture, relative to the file's folder. Its "
            f"columns are {', '.join(record)}."
        )
    name = record[key]
    is_url = name is not None and URL.match(str(name))
    return {"image": name if name is None or is_url else str(parent / str(name))} | record


def read_sidecars(folder: Folder, *, lines: bool) -> Table:
    """Read the text file of the same name beside each picture (`1.txt` beside `1.jpg`).

    Args:
        folder: The folder.
        lines: Whether each line of a text is a caption; otherwise a text is one caption.
    """
    missing = [name for name in folder.pictures if name not in folder.sidecars]
    warn_left_out(folder.path, "pictures have no text file beside them and are left out", missing)
    warn_left_out(
        folder.path, "files are not read, because the text files beside the pictures are", folder.caption_files
    )
    texts = {name: read_text(folder.path / text) for name, text in folder.sidecars.items()}
    captions = {name: text.splitlines() if lines else [" ".join(text.split())] for name, text in texts.items()}
    return _table_of_folder([{"image": name, "caption": captions[name]} for name in texts], folder)


def read_class_folders(folder: Folder) -> Table:
    """Read pictures without texts; `label` is the name of their folder, if it is no split."""
    records = [{"image": name, "label": _class_of(name)} for name in folder.pictures]
    return _table_of_folder(records if any(each["label"] for each in records) else _without(records, "label"), folder)


def _without(records: list[Record], name: str) -> list[Record]:
    return [{key: value for key, value in record.items() if key != name} for record in records]


def _class_of(name: str) -> str | None:
    parent = PurePosixPath(name).parent.name
    return None if parent.lower() in ("", *SPLITS) else parent


def read_caption_file(folder: Folder, tables: dict[str, Table]) -> Table:
    """Read files that list pictures of their folder: one for all splits, or one for each.

    Args:
        folder: The folder.
        tables: The content of the files by name.

    Raises:
        RecipeError: The files are several, and are not named by splits.
    """
    stems = {name: PurePosixPath(name).stem.lower() for name in tables}
    parts = {
        name: set(re.split(r"[^a-z]+", f"{PurePosixPath(name).parent}/{stem}".lower())) for name, stem in stems.items()
    }
    splits = {name: [SPLITS[part] for part in words if part in SPLITS] for name, words in parts.items()}
    if len(tables) > 1 and sorted(map(len, splits.values())) != [1] * len(tables):
        raise RecipeError(
            f"{folder.path} has several files that may list captions: {join_first(list(tables))}. Set dataset_name to "
            "one of them, and image_root to the folder of its pictures."
        )
    records: list[Record] = []
    found: list[str] = []
    for name, table in tables.items():
        column = table.image_column or choose_image_column(table.rows.features, None, f"{folder.path / name},")
        rows = table.rows.to_list()
        places = _find_pictures([str(row[column]) for row in rows], PurePosixPath(name).parent, folder)
        records += [row | {"image": place} for row, place in zip(rows, places, strict=True)]
        found += list(table.splits or splits[name] * len(rows))
    listed = {record["image"] for record in records}
    unlisted = [name for name in folder.pictures if name not in listed]
    warn_left_out(folder.path, f"pictures are not in {next(iter(tables))} and are left out", unlisted)
    facts = next(iter(tables.values()))
    return table_of(
        records,
        folder.path,
        splits=found or splits_of(record["image"] for record in records),
        image_column="image",
        id_column=facts.id_column,
    )


def _find_pictures(names: Sequence[str], parent: PurePosixPath, folder: Folder) -> list[str]:
    """The places of pictures that a file in `parent` names: there, or anywhere in the folder if the name is unique."""
    there = set(folder.names)
    by_name: dict[str, list[str]] = {}
    for name in folder.pictures:
        by_name.setdefault(PurePosixPath(name).name, []).append(name)
    places = []
    for name in names:
        place = os.path.normpath(parent / name.replace("\\", "/")) if "://" not in name else name
        if place not in there:
            same = [each for each in by_name.get(PurePosixPath(place).name, []) if f"/{each}".endswith(f"/{place}")]
            place = same[0] if len(same) == 1 else place
        places.append(place)
    return places


def _table_of_folder(records: Sequence[Record], folder: Folder) -> Table:
    splits = splits_of(str(record["image"]) for record in records)
    return table_of(records, folder.path, splits=splits, image_column="image")


def canonical_split(name: str) -> str:
    """The name of a split in `datasets`: `val` is `validation`."""
    return SPLITS.get(name.strip().lower(), name.strip())


def splits_of(paths: Iterable[str]) -> list[str] | None:
    """The split of each path by its first folder that is named like one; None if no folder is."""
    found = [
        next((SPLITS[part.lower()] for part in PurePosixPath(path).parts[:-1] if part.lower() in SPLITS), None)
        for path in paths
    ]
    return [each or "train" for each in found] if any(found) else None
