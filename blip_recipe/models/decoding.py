"""How a model generates texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DecodingSettings:
    """How a saved model was scored: its prompt and decoding. The defaults are those of BLIP's COCO captions.

    Attributes:
        prompt: Words every caption starts with.
        num_beams: 1 is greedy search.
        max_length: Longest text in tokens, prompt included.
        min_length: Shortest text in tokens, prompt included.
    """

    prompt: str = ""
    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5

    def generate_kwargs(self) -> dict[str, Any]:
        """The arguments of `generate`: beam search without sampling."""
        kwargs = asdict(self)
        del kwargs["prompt"]
        return kwargs | {"do_sample": False}
