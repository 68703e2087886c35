"""Score how well texts match pictures with an exported model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from blip_recipe.data.captions import normalize_caption
from blip_recipe.runtime.decoder import IMAGE, cross_states
from blip_recipe.runtime.folder import ExportedFolder
from blip_recipe.runtime.scores import log_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from blip_recipe.data.images import Picture
    from blip_recipe.runtime.engines import Graph

MATCHING = 1
"""The class of the ITM head of pairs that match."""

TEXTS_AT_A_TIME = 256
"""Texts in a batch."""


class EncodedTexts(NamedTuple):
    """Texts in batches, and their features `(texts, width)`."""

    parts: list[Sequence[str]]
    features: np.ndarray


@dataclass(frozen=True)
class ExportedMatcher:
    """A matcher that runs without torch.

    Example:
        ```python
        from blip_recipe.runtime.matcher import ExportedMatcher

        matcher = ExportedMatcher.load("exported/my_matcher")
        texts = matcher.encode_texts(["a dog", "two cats"])
        probabilities, cosines = matcher.compare(matcher.preprocess("photo.jpg"), texts)
        ```

    Attributes:
        folder: The exported folder.
        image_encoder: The graph from pixels to features, and keys and values of cross-attention.
        text_encoder: The graph from texts to features.
        pair_encoder: The graph from texts and pictures to the logits of ITM.
    """

    folder: ExportedFolder
    image_encoder: Graph
    text_encoder: Graph
    pair_encoder: Graph

    @classmethod
    def load(cls, path: str | Path, *, engine: str | None = None, threads: int | None = None) -> Self:
        """Load an exported matcher.

        Args:
            path: The folder.
            engine: `onnxruntime`, `openvino` or `openvino_bf16`; by default the first that is installed.
            threads: Number of threads; by default that of `OMP_NUM_THREADS`, else the engine's choice.

        Raises:
            RecipeError: It is not the folder of an exported matcher.
        """
        folder = ExportedFolder.open(path, "retrieval", engine=engine, threads=threads)
        return cls(folder, *folder.load("image_encoder", "text_encoder", "pair_encoder"))

    def preprocess(self, picture: Picture) -> np.ndarray:
        """The `pixel_values` `(1, 3, height, width)` of a picture.

        Raises:
            BadImageError: It cannot be read.
        """
        return self.folder.read_picture(picture)

    def match(self, pixel_values: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The ITM probabilities of the texts of each picture.

        Args:
            pixel_values: Arrays `(1, 3, height, width)`.
            texts: The texts of each picture, of the same number for all.
        """
        encoded = self.image_encoder.run({"pixel_values": np.concatenate(pixel_values)})
        return self._probabilities(encoded, [text for own in texts for text in own]).tolist()

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise texts for ITM, and encode them for ITC."""
        parts = [texts[start : start + TEXTS_AT_A_TIME] for start in range(0, len(texts), TEXTS_AT_A_TIME)]
        return EncodedTexts(parts, np.concatenate([self.text_features(part) for part in parts]))

    def compare(self, pixel_values: np.ndarray, texts: EncodedTexts) -> tuple[list[float], list[float]]:
        """The ITM probability and the ITC cosine of each text with one picture `(1, 3, height, width)`."""
        encoded = self.image_encoder.run({"pixel_values": pixel_values})
        probabilities = [value for part in texts.parts for value in self._probabilities(encoded, part)[0].tolist()]
        return probabilities, (texts.features @ encoded["image_features"][0]).tolist()

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-length ITC features `(texts, width)`."""
        ids, mask = self._encode(texts)
        return self.text_encoder.run({"input_ids": ids, "attention_mask": mask})["text_features"]

    def image_features(self, pixel_values: np.ndarray) -> np.ndarray:
        """Unit-length ITC features `(images, width)` of `pixel_values` `(images, 3, height, width)`."""
        return self.image_encoder.run({"pixel_values": pixel_values})["image_features"]

    def _probabilities(self, encoded: dict[str, np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """ITM probabilities `(images, texts of an image)`, of texts with those of an image next to each other."""
        ids, mask = self._encode(texts)
        shape = (len(encoded["image_features"]), -1, ids.shape[1])
        feeds = {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}
        logits = self.pair_encoder.run(feeds | cross_states(encoded, IMAGE))["match_logits"]
        return np.exp(log_softmax(logits))[..., MATCHING]

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        cleaned = [normalize_caption(text) for text in texts]
        return self.folder.texts.encode_all(cleaned, self.folder.record["max_text_tokens"])
