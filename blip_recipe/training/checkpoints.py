"""Checkpoints that are whole or are not there: written aside, with checksums of all files, then moved into place."""

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

from blip_recipe.data.storage import read_json, write_json
from blip_recipe.errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Set

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""The file of a checkpoint that names all others, with their sizes and checksums."""

STAGING = ".saving"
"""The directory within `output_dir` that a checkpoint is written in before it is whole."""

GIB = 2**30


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint of `output_dir` that is whole; torn ones are named in a warning and skipped."""
    for checkpoint in reversed(find_checkpoints(output_dir)):
        fault = find_damage(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("%s is torn and skipped: %s", checkpoint.name, fault)
    return None


def find_damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or nothing: its files and those of its best checkpoint are checked."""
    fault = _compare_with_manifest(checkpoint)
    if fault is None:
        best = checkpoint.parent / Path(read_state(checkpoint)["best_model_checkpoint"] or checkpoint.name).name
        if best != checkpoint and (fault := _compare_with_manifest(best)):
            return f"{best.name}, its best, is torn: {fault}"
    return fault


def _compare_with_manifest(checkpoint: Path) -> str | None:
    try:
        expected = read_json(checkpoint / MANIFEST).get("files", {})
        if TRAINER_STATE_NAME not in expected:
            return f"{MANIFEST}, which is written last, is missing"
        for name, entry in expected.items():
            path = checkpoint / name
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes, not {entry['size']}"
            if checksum(path) != entry["sha256"]:
                return f"{name} is not what was written (another sha256)"
        if not any(name.startswith("rng_state") for name in expected):
            return "it has weights alone (save_only_model), with which a run cannot go on as before"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def checksum(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_into_place(staged: Path, checkpoint: Path) -> None:
    """Make a checkpoint that was written aside the one that is resumed from, at once and for good.

    All files are on the disk before the manifest is, and the manifest before the checkpoint has its name: whenever the
    power fails, either the checkpoint is whole or it is not there.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    entries = {
        path.relative_to(staged).as_posix(): {"size": path.stat().st_size, "sha256": checksum(path)} for path in files
    }
    write_json(staged / MANIFEST, {"files": entries})
    for path in (*files, staged / MANIFEST, *(each for each in staged.rglob("*") if each.is_dir()), staged):
        flush(path)
    if checkpoint.exists():
        # A torn one, or one of steps that are being repeated.
        checkpoint.rename(staged.parent / "replaced")
    staged.rename(checkpoint)
    flush(checkpoint.parent)
    shutil.rmtree(staged.parent)


def flush_files(folder: Path) -> None:
    """Have the files of a folder written to the disk, not those of folders in it."""
    for path in (*filter(Path.is_file, folder.iterdir()), folder):
        flush(path)


def flush(path: Path) -> None:
    """Have the content of a file, or the names in a directory, written to the disk."""
    if path.is_dir():
        if os.name == "nt":
            return  # Windows keeps directories by itself
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rotate_checkpoints(output_dir: Path, limit: int | None, kept: Set[Path]) -> None:
    """Delete checkpoints until `limit` are left, never one of `kept`.

    Those go first that are newer than all that is kept (torn ones, or steps that are being repeated), then the oldest.
    """
    checkpoints = find_checkpoints(output_dir)
    newest = max(map(_step_of, kept))
    candidates = sorted(set(checkpoints) - kept, key=lambda each: (_step_of(each) < newest, _step_of(each)))
    for checkpoint in candidates[: max(0, len(checkpoints) - limit)] if limit and limit > 0 else []:
        shutil.rmtree(checkpoint)


@contextmanager
def explain_save_errors(what: str, output_dir: Path) -> Iterator[None]:
    """Say what could not be saved, where, and how to go on: a full disk is nothing that a traceback explains.

    Raises:
        SaveError: Something within could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("PytorchStreamWriter|inline_container", str(error)):
            raise
        shutil.rmtree(output_dir / STAGING, ignore_errors=True)
        # torch only says that its archive has another length than it should.
        reason = "a file could not be written to its end" if isinstance(error, RuntimeError) else error
        raise SaveError(
            f"{what} could not be saved in {output_dir}, where {shutil.disk_usage(output_dir).free / GIB:.1f} GiB are "
            f"free: {reason}.\nEarlier checkpoints are whole. Make room, or lower save_total_limit, and run the same "
            "command again: it resumes from the newest."
        ) from error


def clear_output_dir(output_dir: Path, patterns: tuple[str, ...]) -> None:
    """Delete the checkpoints of an earlier run and its files of `patterns`, and nothing else."""
    for folder in (*find_checkpoints(output_dir), output_dir / STAGING):
        shutil.rmtree(folder, ignore_errors=not folder.exists())
    for pattern in (*patterns, "*_results.json", "predictions.jsonl", TRAINER_STATE_NAME):
        for path in output_dir.glob(pattern):
            path.unlink()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Trainer's state as a checkpoint keeps it."""
    return read_json(checkpoint / TRAINER_STATE_NAME)


def find_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of `output_dir`, whole or torn, by step."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
