"""Write checkpoints atomically, with checksums of all files, and find the newest intact one."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME

from blip_recipe.data.storage import BASELINE_PREDICTIONS_FILE, PREDICTIONS_FILE, read_json, write_json
from blip_recipe.errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Set

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""A file in each checkpoint with the size and checksum of every other file."""

STAGING = ".saving"
"""The subdirectory of `output_dir` for a checkpoint that is not complete yet."""

TEXT_FILES = (PREDICTIONS_FILE, BASELINE_PREDICTIONS_FILE)

GIB = 2**30


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest intact checkpoint of `output_dir`; damaged ones are skipped with a warning."""
    for checkpoint in reversed(find_checkpoints(output_dir)):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("%s is damaged and skipped: %s", checkpoint.name, damage)
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Why a run cannot resume from a checkpoint; None if it can. Its best checkpoint is checked too."""
    damage = _compare_with_manifest(checkpoint)
    if damage is None:
        best = checkpoint.parent / Path(read_state(checkpoint)["best_model_checkpoint"] or checkpoint.name).name
        if best != checkpoint and (damage := _compare_with_manifest(best)):
            return f"its best checkpoint {best.name} is damaged: {damage}"
    return damage


def _compare_with_manifest(checkpoint: Path) -> str | None:
    try:
        expected = read_json(checkpoint / MANIFEST).get("files", {})
        if TRAINER_STATE_NAME not in expected:
            return f"{MANIFEST} is missing, so it was not written to the end"
        for name, entry in expected.items():
            path = checkpoint / name
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes, expected {entry['size']}"
            if checksum(path) != entry["sha256"]:
                return f"{name} has changed since it was written (another sha256)"
        if not any(name.startswith("rng_state") for name in expected):
            return "it only has weights (save_only_model), without the optimiser state that a run resumes from"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def checksum(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_into_place(staged: Path, checkpoint: Path) -> None:
    """Move a complete checkpoint from the staging directory to its final path.

    All files are flushed to the disk before the manifest, and the manifest before the rename. After a power failure
    the checkpoint is therefore either complete or absent.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    entries = {
        path.relative_to(staged).as_posix(): {"size": path.stat().st_size, "sha256": checksum(path)} for path in files
    }
    write_json(staged / MANIFEST, {"files": entries})
    for path in (*files, staged / MANIFEST, *(each for each in staged.rglob("*") if each.is_dir()), staged):
        flush(path)
    if checkpoint.exists():
        # A damaged checkpoint, or one from before the run was resumed at an earlier step.
        checkpoint.rename(staged.parent / "replaced")
    staged.rename(checkpoint)
    flush(checkpoint.parent)
    shutil.rmtree(staged.parent)


def flush_files(folder: Path) -> None:
    """Flush the files directly in a folder to the disk."""
    for path in (*filter(Path.is_file, folder.iterdir()), folder):
        flush(path)


def flush(path: Path) -> None:
    """Flush the content of a file, or the entries of a directory, to the disk."""
    if path.is_dir():
        if os.name == "nt":
            return  # Windows cannot flush directories
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rotate_checkpoints(output_dir: Path, limit: int | None, kept: Set[Path]) -> None:
    """Delete checkpoints until `limit` are left, but none of `kept`.

    Checkpoints newer than all kept ones are deleted first (they are damaged, or from before a resumption), then the
    oldest.
    """
    checkpoints = find_checkpoints(output_dir)
    newest = max(map(_step_of, kept))
    candidates = sorted(set(checkpoints) - kept, key=lambda each: (_step_of(each) < newest, _step_of(each)))
    for checkpoint in candidates[: max(0, len(checkpoints) - limit)] if limit and limit > 0 else []:
        shutil.rmtree(checkpoint)


@contextmanager
def explain_save_errors(what: str, output_dir: Path) -> Iterator[None]:
    """Turn errors of writing files, such as a full disk, into a `SaveError`.

    Raises:
        SaveError: A file could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("PytorchStreamWriter|inline_container", str(error)):
            raise
        shutil.rmtree(output_dir / STAGING, ignore_errors=True)
        # torch only reports that its archive has an unexpected length.
        reason = "a file could not be written completely" if isinstance(error, RuntimeError) else error
        raise SaveError(
            f"{what} could not be saved in {output_dir}, where {shutil.disk_usage(output_dir).free / GIB:.1f} GiB are "
            f"free: {reason}.\nEarlier checkpoints are intact. Free some space, or lower save_total_limit, and run the "
            "same command again: it resumes from the newest checkpoint."
        ) from error


def clear_output_dir(output_dir: Path, patterns: tuple[str, ...]) -> None:
    """Delete an earlier run's checkpoints, results and files that match `patterns`."""
    for folder in (*find_checkpoints(output_dir), output_dir / STAGING):
        shutil.rmtree(folder, ignore_errors=not folder.exists())
    for pattern in (*patterns, "*_results.json", "*_result.json", *TEXT_FILES, TRAINER_STATE_NAME):
        for path in output_dir.glob(pattern):
            path.unlink()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The Trainer state in a checkpoint."""
    return read_json(checkpoint / TRAINER_STATE_NAME)


def find_checkpoints(output_dir: Path) -> list[Path]:
    """All checkpoints of `output_dir`, damaged ones included, sorted by step."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
