"""The order of the tests, for processes that share them: the longest first in each, so that none of them ends alone.

pytest-xdist gives each process an equal part of the list, in its order. A process that has none left takes from the end
of the others' parts. So the files with the longest tests, and with the longest fixtures, stand where each part begins.
"""

from __future__ import annotations

import os

import pytest

LONGEST = (
    "test_blip_modes_runs",
    "test_finetune_blip_runs",
    "metrics/test_meteor.py",
    "training/test_sharding.py",
    "training/test_distributed.py",
    "training/test_group_signals.py",
    "metrics/test_spice.py",
    "test_finetune.py",
    "retrieval/test_trainer.py",
    "pretraining/test_trainer.py",
    "training/test_task_adapters.py",
    "training/test_streams.py",
    "vqa/test_trainer.py",
    "training/test_embeddings.py",
    "test_caption.py",
    "test_warnings.py",
    "captioning/test_trainer.py",
    "test_one_cell_changes",
    "hub/test_checkpoint_upload.py",
    "training/test_kills.py",
    "models/test_gradcam.py",
    "test_languages.py",
    "capfilt/test_faults.py",
    "recipe/test_tasks.py",
    "exporting/test_export.py",
    "packaging/test_wheel.py",
)
"""Files, or tests of one, that take 15 seconds and more, the longest first."""


def sort(items: list[pytest.Item]) -> None:
    """Put the longest tests where the parts of the processes begin, and keep those of a file together."""
    parts: list[list[pytest.Item]] = [[] for _ in range(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))]
    rest = list(items)
    for number, name in enumerate(LONGEST):
        found = [item for item in rest if name in item.nodeid]
        if found:
            # Back and forth, as the first is longer than the second, and the third than the fourth.
            turn, place = divmod(number, len(parts))
            parts[place if turn % 2 == 0 else -1 - place] += found
            rest = [item for item in rest if item not in found]
    items[:] = []
    for number, part in enumerate(parts):
        size = (len(rest) + sum(map(len, parts[number:]))) // (len(parts) - number)
        fill = max(0, size - len(part))
        items += part + rest[:fill]
        rest = rest[fill:]
    items += rest
