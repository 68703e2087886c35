"""The settings of text generation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

EarlyStopping = Literal[True, False, "never"]

NO_PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "early_stopping": False,
}
"""The penalties and the end of the search that are usual, which a model card leaves out."""

ONLY_BEAMS = ("length_penalty", "length_penalty_counts_prompt", "early_stopping")
"""Settings without effect where there is one beam."""

COUNTS_PROMPT = "length_penalty_counts_prompt"
"""The setting of captioning that `generate` of transformers does not have."""


@dataclass(frozen=True)
class DecodingSettings:
    """The prompt and decoding that a model was scored with. The defaults are those of BLIP on COCO.

    Attributes:
        prompt: Text that every caption starts with.
        num_beams: Number of beams; 1 is greedy search.
        max_length: Maximum length in tokens, prompt included.
        min_length: Minimum length in tokens, prompt included.
        repetition_penalty: Penalty of tokens that the text already has; 1: none.
        no_repeat_ngram_size: Sequences of this many tokens may occur only once in a text; 0: no limit.
        length_penalty: Exponent of the length that divides the score of a beam: above 1, longer texts win more often.
        early_stopping: The end of beam search: True with the first `num_beams` complete texts, `"never"` when no other
            text can be better, False where none is likely to be.
        length_penalty_counts_prompt: Whether that length counts the prompt, as in the original, or only generated
            tokens, as in transformers now.
    """

    prompt: str = ""
    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    length_penalty_counts_prompt: bool = False

    @classmethod
    def from_kwargs(cls, generate_kwargs: Mapping[str, Any], prompt: str = "") -> Self:
        """The settings with these arguments of `generate`."""
        return cls(prompt, **{name: value for name, value in generate_kwargs.items() if name != "do_sample"})

    def generate_kwargs(self) -> dict[str, Any]:
        """Arguments of `generate` for beam search without sampling, and of `generate_token_ids`.

        `length_penalty_counts_prompt`, which only the latter has, is among them if it is set.
        """
        kwargs = asdict(self)
        del kwargs["prompt"]
        if not self.length_penalty_counts_prompt:
            del kwargs[COUNTS_PROMPT]
        return kwargs | {"do_sample": False}

    @property
    def penalties(self) -> dict[str, float]:
        """Arguments of `generate` that are not the usual ones, besides lengths and beams; for model cards."""
        return {name: value for name, none in NO_PENALTIES.items() if (value := getattr(self, name)) != none}
