"""Features of images and texts in a file that any vector index takes: unit vectors, ids, and what each is of."""

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

from blip_recipe.data.storage import write_whole
from blip_recipe.errors import RecipeError
from blip_recipe.retrieval.scoring import tokenize_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import BlipProcessor

    from blip_recipe.retrieval.modeling import BlipForRetrieval


@dataclass
class Embeddings:
    """Vectors of length 1, whose inner products are the cosines that ITC compares.

    Attributes:
        ids: Of an image its file or URL; of a text its file and line, `FILE:LINE`.
        kinds: `image` or `text`.
        texts: The text itself; empty for images.
        vectors: One array `(items, width)` in float32 a batch.
    """

    ids: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)

    def add(self, kind: str, ids: Sequence[str], texts: Sequence[str], features: torch.Tensor) -> None:
        """Append items of a kind with their features `(items, width)`."""
        # A file's name may be no text that can be written.
        self.ids += [each.encode("utf-8", "backslashreplace").decode() for each in ids]
        self.kinds += [kind] * len(ids)
        self.texts += texts
        self.vectors.append(features.float().cpu().numpy())

    @property
    def matrix(self) -> np.ndarray:
        """All vectors, `(items, width)`."""
        return np.concatenate(self.vectors)


@torch.no_grad()
def embed_images(model: BlipForRetrieval, pixel_values: torch.Tensor) -> torch.Tensor:
    """Features `(images, width)` of `pixel_values` `(images, 3, height, width)`, normalised."""
    return model.image_features(model.encode_images(pixel_values))


@torch.no_grad()
def embed_texts(model: BlipForRetrieval, processor: BlipProcessor, texts: Sequence[str]) -> torch.Tensor:
    """Features `(texts, width)` of texts as they are written."""
    tokens = tokenize_texts(processor.tokenizer, texts)
    return model.text_features(**{name: values.to(model.device) for name, values in tokens.items()})


def find_writer(path: Path) -> Callable[[Embeddings], bytes]:
    """What writes the kind of file that `path` names.

    Raises:
        RecipeError: It is none of those that are known.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise RecipeError(f"--embeddings is {str(path)!r}: expected a name that ends in one of {', '.join(WRITERS)}.")
    return writer


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write all of them at once, in the form that the name of `path` ends in.

    Raises:
        RecipeError: It ends in another one, or there is nothing to write.
    """
    writer = find_writer(path)
    if not embeddings.ids:
        raise RecipeError("There are no pictures and no texts that could be read: nothing was written.")
    write_whole(path, writer(embeddings))


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
"""Kinds of files: columns `id`, `kind`, `text`, `embedding`; arrays of these names in the plural; a tensor `embeddings`
with the others as JSON lists in the file's metadata."""
