"""What of an output directory is published, and what never is: pickles, the token, a base that nobody else has."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard, get_token

from blip_recipe.errors import PushError, RecipeError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

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
    "samples/best.jpg",
    "samples/median.jpg",
    "samples/worst.jpg",
    "samples.png",  # of older cards
    "training_curves.png",
    "all_results.json",
)
"""Patterns of the files that a run makes anew, and that are deleted from a repository when a new run lacks them."""

PUBLISHED_FILES = (*MODEL_FILES, "README.md")
"""Patterns of the files of an output directory that are published; nothing else ever is."""


def published_files(folder: Path) -> dict[str, Path]:
    """The files of an output directory that are published, by name.

    Raises:
        RecipeError: The directory is no finished output directory: it has no weights, or nothing that says of what.
    """
    found = sorted(path for pattern in PUBLISHED_FILES for path in folder.glob(pattern) if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in found}
    if not any(name.endswith(".safetensors") for name in files) or not {"config.json", "adapter_config.json"} & set(
        files
    ):
        raise RecipeError(
            f"{folder} holds no finished model: expected model.safetensors and config.json, or "
            "adapter_model.safetensors and adapter_config.json, as a run leaves them in its output_dir."
        )
    if "adapter_config.json" in files:
        _check_base(json.loads(files["adapter_config.json"].read_text(encoding="utf-8")), folder)
    return files


def _check_base(adapter: dict[str, Any], folder: Path) -> None:
    """Refuse an adapter whose base model nobody else can load."""
    base = adapter.get("base_model_name_or_path")
    if not base or Path(base).expanduser().exists() or Path(base).is_absolute():
        raise RecipeError(
            f"{folder} is an adapter of {base!r}, which is not on the Hub, so nobody else could load it: fold it into "
            f"a plain model with `python -m blip_recipe.merge {folder} OUT`, and push OUT."
        )


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file has a name of one of the patterns, in whose folder it must be: `*` stands for no `/`."""
    return any(fnmatchcase(name, each) and name.count("/") == each.count("/") for each in patterns)


def check_contents(files: Mapping[str, Path], api: HfApi) -> None:
    """Refuse to publish the token, a pickle under another name, or a card that the Hub would refuse."""
    token = api.token if isinstance(api.token, str) else get_token()
    for name, path in files.items():
        if token and _contains(path, token.encode()):
            raise PushError(f"{name} contains the Hub token of this session: remove it, and have the token replaced.")
        if _is_pickle(path):
            raise PushError(f"{name} is not the file its name says, but a pickle or damaged: save the model again.")
    if "README.md" in files:
        try:
            ModelCard.load(files["README.md"])
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise PushError(f"The metadata of README.md cannot be read: {error}") from error


def _contains(path: Path, secret: bytes) -> bool:
    """Whether the bytes stand anywhere in a file, weights of any size included."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(secret) >= 0


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle (protocol 2 and later) or the zip archive of `torch.save`, whatever its name."""
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors":
        # Eight bytes of length, any of them, then a JSON object.
        return head[8:] != b"{"
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] <= b"\x05")
