"""Files of weights: which of a repository's are read, and what is said of those that are not."""

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
"""Stems of the pickle files in which weights were kept before safetensors."""

CONVERSIONS = {
    "model": "from transformers import BlipForConditionalGeneration as Blip; "
    "Blip.from_pretrained('DIR', use_safetensors=False).save_pretrained('DIR')",
    "adapter_model": "import torch, safetensors.torch; "
    "safetensors.torch.save_file(torch.load('DIR/adapter_model.bin'), 'DIR/adapter_model.safetensors')",
}
"""Python that writes the safetensors beside the pickle in the directory DIR; it unpickles nothing but tensors."""


def find_weights(name: str, stem: Literal["model", "adapter_model"], *, allow_pickle: bool, **hub: Any) -> Path:
    """The first file of the weights of `name`: safetensors, or where there are none and it is allowed a pickle.

    `hub` goes to `cached_file`: `revision`, `token`, `local_files_only`.

    Raises:
        RecipeError: There are no such files.
    """
    names = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    if allow_pickle:
        names += [f"{PICKLES[stem]}.bin", f"{PICKLES[stem]}.bin.index.json"]
    for filename in names:
        if path := cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub):
            return Path(path)
    missing = f"{name!r} has no weights that can be loaded: expected {stem}.safetensors."
    if allow_pickle:
        raise RecipeError(missing)
    raise RecipeError(
        f"{missing} A pickle file ({PICKLES[stem]}.bin) can run code when it is read, so it is refused unless you say "
        "otherwise: --allow_pickle of blip_recipe.caption, allow_pickle=True of blip_recipe.caption_pipeline. To "
        f'convert a model that you trust, in its directory DIR: python -c "{CONVERSIONS[stem]}"'
    )


@contextlib.contextmanager
def explain_weight_errors(name: str) -> Iterator[None]:
    """Turn what the readers of damaged or dangerous weights raise into a `RecipeError` that names their model."""
    try:
        yield
    except (OSError, EOFError, struct.error, SafetensorError, UnpicklingError) as error:
        # torch's own text advises to unpickle everything, and so to run the code.
        reason = "no pickle of tensors alone" if isinstance(error, UnpicklingError) else first_line(error).rstrip(".")
        raise RecipeError(
            f"The weights of {name!r} cannot be read: {reason}. Expected what `save_pretrained` writes; if a download "
            "or copy was cut off, fetch the files again."
        ) from error
    except (ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RecipeError(
            f"The model {name!r} cannot be built: {first_line(error)} Expected config.json and weights of one and the "
            "same BLIP, as `save_pretrained` writes them."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or the name of its class."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
