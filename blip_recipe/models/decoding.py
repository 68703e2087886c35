"""The settings of text generation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DecodingSettings:
    """The prompt and decoding that a model was scored with. The defaults are those of BLIP on COCO.

    Attributes:
        prompt: Text that every caption starts with.
        num_beams: Number of beams; 1 is greedy search.
        max_length: Maximum length in tokens, prompt included.
        min_length: Minimum length in tokens, prompt included.
    """

    prompt: str = ""
    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5

    def generate_kwargs(self) -> dict[str, Any]:
        """Arguments of `generate` for beam search without sampling."""
        kwargs = asdict(self)
        del kwargs["prompt"]
        return kwargs | {"do_sample": False}
