"""Read the layouts in which people keep captioned pictures on disk: a table of kinds, and one small reader for each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from blip_recipe.data.layouts.annotations import read_coco, read_karpathy
from blip_recipe.data.layouts.archives import extract, is_saved, read_saved
from blip_recipe.data.layouts.folders import (
    Folder,
    list_folder,
    read_caption_file,
    read_class_folders,
    read_metadata,
    read_sidecars,
)
from blip_recipe.data.layouts.json_files import EXPECTED, load_json, read_lines, read_list, read_mapping
from blip_recipe.data.layouts.table import Table
from blip_recipe.data.layouts.text_files import read_columns
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blip_recipe.data.arguments import DataArguments

__all__ = ["FILES", "FOLDERS", "JSON", "LISTED", "METADATA", "SHARDS", "Table", "read_layout"]

SHARDS, METADATA, LISTED = "parquet files or tars", "an imagefolder with metadata", "a file that lists pictures"


def read_layout(path: Path, arguments: DataArguments) -> Table | None:
    """Read a file or a folder.

    Returns:
        All rows of all splits, or None for a folder of shards, which `datasets` reads.

    Raises:
        RecipeError: It is of no known kind, or broken.
    """
    if path.is_file():
        return _read_file(path, arguments)
    folder = list_folder(path)
    return next((read(folder, arguments) for fits, read in FOLDERS.values() if fits(folder)), None)


def _read_file(file: Path, arguments: DataArguments) -> Table:
    read = FILES.get(file.suffix.lower())
    if read is None:
        raise RecipeError(f"{file} is of no known kind: expected a file that ends in {', '.join(FILES)}, or a folder.")
    return read(file, arguments)


def _read_json(file: Path, arguments: DataArguments) -> Table:
    try:
        content = load_json(file)
    except RecipeError:
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            lines = [line for line in (opened.readline(), opened.readline()) if line.strip()]
        if len(lines) == 2 and all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
            return read_lines(file)
        raise
    for fits, read in JSON.values():
        if fits(content):
            try:
                return read(content, file)
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
                raise RecipeError(f"{file} is not as expected ({type(error).__name__}: {error}). {EXPECTED}") from error
    raise RecipeError(f"{file} has no list of 'images'. {EXPECTED}")


def _read_parquet(file: Path, arguments: DataArguments) -> Table:
    return Table(Dataset.from_parquet(str(file)), file.parent)


def _read_zip(file: Path, arguments: DataArguments) -> Table:
    table = read_layout(extract(file), arguments)
    if table is None:
        raise RecipeError(f"{file} has no pictures with captions: expected {', '.join(FOLDERS)}.")
    return replace(table, closed=True)


def _read_caption_files(folder: Folder, arguments: DataArguments) -> Table:
    tables = {name: _read_file(folder.path / name, arguments) for name in folder.caption_files}
    return read_caption_file(folder, tables)


def _read_sidecars(folder: Folder, arguments: DataArguments) -> Table:
    return read_sidecars(folder, lines=getattr(arguments, "caption_lines", False))


def _read_zips(folder: Folder, arguments: DataArguments) -> Table | None:
    table = read_layout(extract(*(folder.path / name for name in folder.zips)), arguments)
    return table and replace(table, closed=True)


def _has_captions_by_picture(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    texts = chain.from_iterable(each if isinstance(each, list) else [each] for each in content.values())
    return bool(content) and all(isinstance(each, str) for each in texts)


def _has(key: str, content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), list)


FILES: dict[str, Callable[[Path, DataArguments], Table]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), lambda file, _: read_columns(file)),
    **dict.fromkeys((".jsonl", ".ndjson"), lambda file, _: read_lines(file)),
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".zip": _read_zip,
}
"""The reader of each kind of file, by its extension."""

JSON: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Path], Table]]] = {
    "COCO captions": (lambda content: _has("images", content) and "annotations" in content, read_coco),
    "Karpathy's splits": (partial(_has, "images"), read_karpathy),
    "a list of objects": (lambda content: isinstance(content, list), read_list),
    "a list under 'data'": (partial(_has, "data"), read_list),
    "captions by picture": (_has_captions_by_picture, read_mapping),
}
"""The kinds of JSON files: how each is recognised and read, the preferred one first."""

FOLDERS: dict[str, tuple[Callable[[Folder], bool], Callable[[Folder, DataArguments], Table | None]]] = {
    "saved by datasets": (lambda folder: is_saved(folder.path), lambda folder, _: read_saved(folder.path)),
    SHARDS: (lambda folder: folder.has_shards or not folder.names, lambda *_: None),
    METADATA: (lambda folder: bool(folder.metadata), lambda folder, _: read_metadata(folder)),
    "a text file beside each picture": (lambda folder: bool(folder.sidecars), _read_sidecars),
    LISTED: (lambda folder: bool(folder.pictures and folder.caption_files), _read_caption_files),
    "folders by class": (lambda folder: bool(folder.pictures), lambda folder, _: read_class_folders(folder)),
    "zips": (lambda folder: bool(folder.zips), _read_zips),
}
"""The kinds of folders: how each is recognised and read, the preferred one first."""
