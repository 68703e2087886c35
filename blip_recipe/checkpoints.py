"""Finding the newest whole checkpoint, and clearing a directory for a fresh start."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

logger = logging.getLogger(__name__)


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint of `output_dir` that is whole; torn ones are named in a warning and skipped."""
    for checkpoint in reversed(_checkpoints(output_dir)):
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("%s is torn and skipped: %s", checkpoint.name, fault)
    return None


def find_fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or nothing.

    Trainer writes its state last, so a checkpoint with a readable state has had everything else written before.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        weights = list(checkpoint.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="pt") as file:
                file.keys()
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None if weights else "it holds no weights"


def clear_output_dir(output_dir: Path, published_files: tuple[str, ...]) -> None:
    """Delete the checkpoints and published files of an earlier run, and nothing else."""
    for checkpoint in _checkpoints(output_dir):
        shutil.rmtree(checkpoint)
    for pattern in (*published_files, "*_results.json", "predictions.jsonl", TRAINER_STATE_NAME):
        for path in output_dir.glob(pattern):
            path.unlink()


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser steps done when `checkpoint` was written."""
    return json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]


def _checkpoints(output_dir: Path) -> list[Path]:
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
