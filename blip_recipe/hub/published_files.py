"""Select and check the files of an output directory that are published."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard, get_token

from blip_recipe.data.storage import read_json
from blip_recipe.errors import PushError, RecipeError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPORT_FILES = ("report.html", "report_files/*.jpg")
"""Patterns of the report. It shows pictures of the data, so it is published only with `push_report`."""

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "recipe.json",
    "answer_list.json",
    "samples/best.jpg",
    "samples/median.jpg",
    "samples/worst.jpg",
    "samples.png",  # of older cards
    "training_curves.png",
    "all_results.json",
    *(f"matcher/{name}" for name in ("config.json", "model.safetensors", "recipe.json")),
    *(f"matcher/{name}" for name in ("processor_config.json", "preprocessor_config.json")),
    *(f"matcher/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
    *REPORT_FILES,
)
"""Patterns of the files of a run. A push deletes them from the repository if the new run does not have them."""

PUBLISHED_FILES = (*MODEL_FILES, "README.md")
"""Patterns of all files that are ever published."""


def published_files(folder: Path) -> dict[str, Path]:
    """Find the files of an output directory that are published, by name.

    The report is one of them if the directory's `recipe.json` has `push_report`.

    Raises:
        RecipeError: The directory has no finished model (weights and configuration), or an adapter of a local model.
    """
    left_out = () if read_json(folder / "recipe.json").get("push_report") is True else REPORT_FILES
    patterns = [pattern for pattern in PUBLISHED_FILES if pattern not in left_out]
    found = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in found}
    if not any(name.endswith(".safetensors") for name in files) or not {"config.json", "adapter_config.json"} & set(
        files
    ):
        raise RecipeError(
            f"{folder} holds no finished model: expected model.safetensors and config.json, or "
            "adapter_model.safetensors and adapter_config.json, as in the output_dir of a finished run."
        )
    if "adapter_config.json" in files:
        _check_base(json.loads(files["adapter_config.json"].read_text(encoding="utf-8")), folder)
    return files


def _check_base(adapter: dict[str, Any], folder: Path) -> None:
    """Refuse an adapter whose base model is not on the Hub."""
    base = adapter.get("base_model_name_or_path")
    if not base or Path(base).expanduser().exists() or Path(base).is_absolute():
        raise RecipeError(
            f"{folder} is an adapter of {base!r}, which is not on the Hub, so nobody else could load it: merge it into "
            f"a full model with `python -m blip_recipe.merge {folder} OUT`, and push OUT."
        )


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file name matches one of the patterns. `*` does not match `/`."""
    return any(fnmatchcase(name, each) and name.count("/") == each.count("/") for each in patterns)


def check_contents(files: Mapping[str, Path], api: HfApi) -> None:
    """Check files before publishing.

    Raises:
        PushError: A file contains the Hub token or is a pickle, or the Hub would reject the card.
    """
    token = api.token if isinstance(api.token, str) else get_token()
    for name, path in files.items():
        if token and _contains(path, token.encode()):
            raise PushError(f"{name} contains your Hub token: remove it, and replace the token on the Hub.")
        if _is_pickle(path):
            raise PushError(f"{name} is a pickle or a damaged file: save the model again.")
    if "README.md" in files:
        try:
            ModelCard.load(files["README.md"])
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise PushError(f"The metadata of README.md cannot be read: {error}") from error


def _contains(path: Path, secret: bytes) -> bool:
    """Whether a file of any size contains the bytes `secret`."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(secret) >= 0


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle (protocol 2 or later), a zip archive of `torch.save` or invalid safetensors."""
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors":
        # A safetensors file starts with eight bytes of length and a JSON object.
        return head[8:] != b"{"
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] <= b"\x05")
