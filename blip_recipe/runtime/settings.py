"""The settings of a search for texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from blip_recipe.models.decoding import EarlyStopping


@dataclass(frozen=True)
class Search:
    """What is searched for. Lengths are in tokens and include the prompt.

    Attributes:
        end: The id of the token that ends a text.
        padding: The id of the token after the end.
        max_length: Maximum length.
        min_length: Minimum length.
        num_beams: Number of beams; 1 is greedy search, or sampling.
        num_return_sequences: Number of texts of each image.
        repetition_penalty: Penalty of tokens that the text already has; 1: none.
        no_repeat_ngram_size: Sequences of this many tokens may occur only once in a text; 0: no limit.
        length_penalty: Exponent of the length that divides the score of a beam.
        early_stopping: The end of beam search, as in transformers.
        uncounted: Number of first tokens that the length in `length_penalty` leaves out.
        do_sample: Whether to sample.
        temperature: Divisor of the logits in sampling.
        top_k: Sample from this many of the likeliest tokens; 0: all.
        top_p: Sample from the likeliest tokens with this total probability.
    """

    end: int
    padding: int
    max_length: int = 20
    min_length: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    uncounted: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], prompt_length: int, *, end: int, padding: int) -> Self:
        """The search for these arguments of `generate`.

        Args:
            arguments: The arguments, among them perhaps `length_penalty_counts_prompt`.
            prompt_length: Number of tokens of the prompt, the start token included.
            end: The id of the token that ends a text.
            padding: The id of the token after the end.

        Raises:
            ValueError: An argument is unknown.
        """
        given = dict(arguments)
        counts_prompt = given.pop("length_penalty_counts_prompt", False)
        for least_or_most in ("max", "min"):
            new_tokens = given.pop(f"{least_or_most}_new_tokens", None)
            if new_tokens is not None:
                given[f"{least_or_most}_length"] = prompt_length + new_tokens
        if unknown := sorted(given.keys() - cls.__dataclass_fields__.keys()):
            raise ValueError(f"{', '.join(unknown)}: an exported model does not have this argument of `generate`.")
        # The start token is never counted.
        return cls(end, padding, uncounted=1 if counts_prompt else prompt_length, **given)
