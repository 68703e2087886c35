"""Find the weight files of a model, and explain why one cannot be read."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers.utils import cached_file

from blip_recipe.errors import RecipeError

PICKLES = {"model": "pytorch_model", "adapter_model": "adapter_model"}
"""Stems of the pickle files of weights, by the stem of their safetensors files."""

CONVERSIONS = {
    "model": "from transformers import BlipForConditionalGeneration as Blip; "
    "Blip.from_pretrained('DIR', use_safetensors=False).save_pretrained('DIR')",
    "adapter_model": "import torch, safetensors.torch; "
    "safetensors.torch.save_file(torch.load('DIR/adapter_model.bin'), 'DIR/adapter_model.safetensors')",
}
"""Python code that converts the pickle file in the directory DIR to safetensors; it only unpickles tensors."""


def find_weights(name: str, stem: Literal["model", "adapter_model"], *, allow_pickle: bool, **hub: Any) -> Path:
    """Find the weight file of `name`: safetensors, or with `allow_pickle` also a pickle file.

    `hub` is passed to `cached_file`: `revision`, `token`, `local_files_only`.

    Raises:
        RecipeError: There is no such file.
    """
    names = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    if allow_pickle:
        names += [f"{PICKLES[stem]}.bin", f"{PICKLES[stem]}.bin.index.json"]
    for filename in names:
        if path := cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub):
            return Path(path)
    missing = f"{name!r} has no weights to load: expected {stem}.safetensors."
    if allow_pickle:
        raise RecipeError(missing)
    raise RecipeError(
        f"{missing} A pickle file ({PICKLES[stem]}.bin) can run code when it is read, so it is only read with "
        "--allow_pickle of blip_recipe.caption or allow_pickle=True of blip_recipe.caption_pipeline. To convert a "
        f'model that you trust, in its directory DIR: python -c "{CONVERSIONS[stem]}"'
    )


@contextlib.contextmanager
def explain_weight_errors(name: str) -> Iterator[None]:
    """Turn errors of reading damaged or unsafe weights into a `RecipeError` that names the model."""
    try:
        yield
    except (OSError, EOFError, struct.error, SafetensorError, UnpicklingError) as error:
        # torch's message advises to unpickle everything, which would run the code.
        is_unsafe = isinstance(error, UnpicklingError)
        reason = "it is not a pickle file of tensors only" if is_unsafe else first_line(error).rstrip(".")
        raise RecipeError(
            f"The weights of {name!r} cannot be read: {reason}. Expected files of `save_pretrained`. If a download or "
            "copy was interrupted, repeat it."
        ) from error
    except (ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RecipeError(
            f"The model {name!r} cannot be built: {first_line(error)} Expected config.json and weights of the same "
            "BLIP model, as `save_pretrained` writes them."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or the name of its class if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
