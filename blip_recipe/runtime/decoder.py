"""The text decoder of an exported model, with its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from blip_recipe.runtime.search import gather_beams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blip_recipe.runtime.engines import Graph

CROSS, IMAGE, PAST, PRESENT = "cross_", "image_", "past_", "present_"
"""The first part of the names of keys and values: of cross-attention, of the picture's (where a graph writes those of a
question as `cross_`), of the tokens before, and with new tokens."""


def cross_states(outputs: Mapping[str, np.ndarray], prefix: str = CROSS) -> dict[str, np.ndarray]:
    """The keys and values of cross-attention among the outputs of an encoder, with `prefix` before their names."""
    states = {name.removeprefix(CROSS): values for name, values in outputs.items() if name.startswith(CROSS)}
    return {f"{prefix}{name}": values for name, values in states.items()}


class CachedDecoder:
    """A decoder that remembers the keys and values of the texts it has read.

    Args:
        graph: The graph `text_decoder`.
        encoded: The keys and values of cross-attention `(images, heads, patches, head width)`, and for questions their
            mask: the inputs that stay the same.
        shape: Number of heads and width of a head.
    """

    def __init__(self, graph: Graph, encoded: Mapping[str, np.ndarray], shape: tuple[int, int]) -> None:
        self.graph, self.encoded = graph, encoded
        cross = cross_states(encoded)
        images = len(next(iter(cross.values())))
        dtype = next(iter(cross.values())).dtype
        empty = np.zeros((images, 1, shape[0], 0, shape[1]), dtype=dtype)
        self.past = {name.removeprefix(CROSS): empty for name in cross}

    def read_all(self, input_ids: np.ndarray) -> np.ndarray:
        """Read tokens `(images, beams, tokens)`; returns all logits `(images, beams, tokens, vocabulary)`."""
        before = next(iter(self.past.values()))
        if before.shape[1] != input_ids.shape[1]:  # nothing was read: any number of beams can begin
            shape = (before.shape[0], input_ids.shape[1], *before.shape[2:])
            self.past = {name: np.zeros(shape, dtype=before.dtype) for name in self.past}
        past = {f"{PAST}{name}": values for name, values in self.past.items()}
        found = self.graph.run({"input_ids": input_ids, **self.encoded, **past})
        self.past = {name: found[f"{PRESENT}{name}"] for name in self.past}
        return found["logits"]

    def read(self, input_ids: np.ndarray) -> np.ndarray:
        """Read tokens `(images, beams, tokens)`; returns the logits after the last `(images, beams, vocabulary)`."""
        return self.read_all(input_ids)[:, :, -1]

    def reorder(self, beams: np.ndarray) -> None:
        """Continue with the texts `beams` `(images, beams)` of each image."""
        self.past = {name: gather_beams(values, beams) for name, values in self.past.items()}
