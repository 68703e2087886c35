"""Output directories and pushes of them for tests."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy
from hub_server import HubServer
from huggingface_hub import HfApi
from safetensors.numpy import save_file

from blip_recipe.hub.publishing import PushResult, push_folder

FAST = (0.01,) * 4
CARD = """---
library_name: transformers
pipeline_tag: image-to-text
model-index:
- name: lab/flowers
  results: []
---

# lab/flowers

`pipeline("image-to-text", model="lab/flowers")`, not lab/flowers-old.
"""


def write_output_dir(folder: Path, adapter: bool = False, value: float = 0.0) -> Path:
    """Write what a run leaves, around weights of one number."""
    folder.mkdir(parents=True)
    prefix = "adapter_" if adapter else ""
    weights = folder / ("adapter_model.safetensors" if adapter else "model.safetensors")
    save_file({"weight": numpy.full((64, 64), value, dtype=numpy.float32)}, weights)
    (folder / f"{prefix}config.json").write_text('{"model_type": "blip", "base_model_name_or_path": "lab/base"}\n')
    (folder / "README.md").write_text(CARD)
    (folder / "recipe.json").write_text(json.dumps({"hub_model_id": "lab/flowers", "seed": 1}))
    (folder / "all_results.json").write_text('{"test_cider": 1.333}\n')
    (folder / "samples").mkdir()
    (folder / "samples" / "best.jpg").write_bytes(b"\xff\xd8\xff\0picture")
    (folder / "samples" / "mine.txt").write_text("of the user, and not published")
    (folder / "vocab.txt").write_text("[PAD]\nflower\n")
    (folder / "training_args.bin").write_bytes(pickle.dumps({"hub_token": "secret"}))
    (folder / "optimizer.pt").write_bytes(b"PK\x03\x04")
    (folder / "predictions.jsonl").write_text('{"image_id": "/home/somebody/1.jpg"}\n')
    (folder / "trainer_state.json").write_text("{}")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_bytes(weights.read_bytes())
    return folder


def push(folder: Path, api: HfApi, repo_id: str = "lab/flowers", private: bool | None = None) -> PushResult:
    """Push without long waits."""
    return push_folder(folder, repo_id, private=private, message="Upload", api=api, waits=FAST)


def content_commits(hub: HubServer, repo_id: str = "lab/flowers") -> int:
    """The commits of a repository but the one that the Hub makes itself."""
    return len(hub.commits(repo_id)) - 1
