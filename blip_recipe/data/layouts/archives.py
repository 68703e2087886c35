"""Read data sets saved by `datasets`, and extract zips into its cache."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path

import datasets
from datasets import Dataset, concatenate_datasets

from blip_recipe.data.layouts.table import Table
from blip_recipe.errors import RecipeError

SAVED = ("state.json", "dataset_dict.json")
"""Files that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write."""


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in SAVED)


def read_saved(folder: Path) -> Table:
    """Read what `save_to_disk` wrote: one split, or several.

    Raises:
        RecipeError: It is broken, or its splits have different columns.
    """
    try:
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, Dataset):
            return Table(saved, folder)
        rows = concatenate_datasets(list(saved.values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{folder} cannot be read: {error}. Expected what `save_to_disk` of `datasets` writes."
        ) from error
    return Table(rows, folder, splits=[name for name, part in saved.items() for _ in range(len(part))])


def extract(*files: Path) -> Path:
    """Extract zips into one folder of the cache of `datasets`, once for each content.

    Raises:
        RecipeError: A zip is broken, or does not fit on the disk.
    """
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    target = Path(datasets.config.EXTRACTED_DATASETS_PATH, hashlib.sha256(repr(facts).encode()).hexdigest())
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as staged:
        for file in files:
            try:
                with zipfile.ZipFile(file) as archive:
                    size, free = sum(each.file_size for each in archive.infolist()), shutil.disk_usage(staged).free
                    if size > free:
                        raise RecipeError(
                            f"{file} holds {size / 2**30:,.1f} GiB, but {target.parent} has {free / 2**30:,.1f} GiB "
                            "free: free some space, or set HF_DATASETS_CACHE to another disk."
                        )
                    # Names that lead out of the folder are changed by `extractall`.
                    archive.extractall(Path(staged, "files"))
            except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
                raise RecipeError(f"{file} cannot be extracted: {error}.") from error
        try:
            Path(staged, "files").rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target
