"""Write features of images and texts to a file for a vector index."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from safetensors.numpy import save

from blip_recipe.data.storage import write_atomically
from blip_recipe.errors import RecipeError
from blip_recipe.models.matching import tokenize_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import BlipProcessor

    from blip_recipe.models.matching import MatchingModel


@dataclass
class Embeddings:
    """Unit vectors of images and texts; their inner products are the cosine similarities of ITC.

    Attributes:
        ids: The file or URL of each image; file and line (`FILE:LINE`) of each text.
        kinds: `image` or `text`.
        texts: The texts; empty for images.
        vectors: One array `(items, width)` in float32 per batch.
    """

    ids: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)

    def add(self, kind: str, ids: Sequence[str], texts: Sequence[str], features: torch.Tensor) -> None:
        """Append items of one kind with their features `(items, width)`."""
        # A file name may not be valid Unicode.
        self.ids += [each.encode("utf-8", "backslashreplace").decode() for each in ids]
        self.kinds += [kind] * len(ids)
        self.texts += texts
        self.vectors.append(features.float().cpu().numpy())

    @property
    def matrix(self) -> np.ndarray:
        """All vectors, `(items, width)`."""
        return np.concatenate(self.vectors)


@torch.no_grad()
def embed_images(model: MatchingModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Features `(images, width)` of normalised `pixel_values` `(images, 3, height, width)`."""
    return model.image_features(model.encode_images(pixel_values))


@torch.no_grad()
def embed_texts(model: MatchingModel, processor: BlipProcessor, texts: Sequence[str]) -> torch.Tensor:
    """Features `(texts, width)` of texts, which are cleaned first."""
    tokens = tokenize_texts(processor.tokenizer, texts)
    return model.text_features(**{name: values.to(model.device) for name, values in tokens.items()})


def find_writer(path: Path) -> Callable[[Embeddings], bytes]:
    """The writer for the extension of `path`.

    Raises:
        RecipeError: The extension is unknown.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise RecipeError(f"--embeddings is {str(path)!r}: expected a name that ends in one of {', '.join(WRITERS)}.")
    return writer


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write all embeddings in the format of the extension of `path`.

    Raises:
        RecipeError: The extension is unknown, or there are no embeddings.
    """
    writer = find_writer(path)
    if not embeddings.ids:
        raise RecipeError("There are no pictures and no texts that could be read: nothing was written.")
    write_atomically(path, writer(embeddings))


def _parquet(embeddings: Embeddings) -> bytes:
    matrix = embeddings.matrix
    table = pyarrow.table(
        {
            "id": embeddings.ids,
            "kind": embeddings.kinds,
            "text": embeddings.texts,
            "embedding": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(matrix.ravel()), matrix.shape[1]),
        }
    )
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _npz(embeddings: Embeddings) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        ids=np.array(embeddings.ids),
        kinds=np.array(embeddings.kinds),
        texts=np.array(embeddings.texts),
        embeddings=embeddings.matrix,
    )
    return buffer.getvalue()


def _safetensors(embeddings: Embeddings) -> bytes:
    columns = {"ids": embeddings.ids, "kinds": embeddings.kinds, "texts": embeddings.texts}
    return save({"embeddings": embeddings.matrix}, {name: json.dumps(values) for name, values in columns.items()})


WRITERS: dict[str, Callable[[Embeddings], bytes]] = {
    ".parquet": _parquet,
    ".npz": _npz,
    ".safetensors": _safetensors,
}
"""The writers of each format. Parquet: columns `id`, `kind`, `text`, `embedding`. NPZ: arrays `ids`, `kinds`, `texts`,
`embeddings`. Safetensors: a tensor `embeddings`, and the others as JSON lists in the metadata."""
