"""The settings of text generation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
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


def decoding_arguments(settings: DecodingSettings, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: those of `explicit`, and the model's settings for the others."""
    if "generation_config" in explicit:
        return dict(explicit)
    arguments = settings.generate_kwargs() | dict(explicit)
    if arguments["do_sample"] and "num_beams" not in explicit:
        arguments["num_beams"] = 1  # as the original samples (`BLIP_Decoder.generate` in `models/blip.py`)
    superseded = {
        "max_length": "max_new_tokens" in explicit,
        "min_length": "min_new_tokens" in explicit,
        # Only beam search has them; `generate` would warn.
        **dict.fromkeys(ONLY_BEAMS, arguments["num_beams"] == 1),
    }
    return {name: value for name, value in arguments.items() if name in explicit or not superseded.get(name)}


def check_has_beams(given: Iterable[str], num_beams: int) -> None:
    """Check that none of the `given` options of a command needs more beams.

    Raises:
        RecipeError: One does.
    """
    if num_beams == 1 and (names := [name for name in ONLY_BEAMS if name in given]):
        raise RecipeError(
            f"--{names[0]} is given, but there is one beam, so no texts of different lengths are compared: set "
            "--num_beams to 2 or more."
        )


def check_caption_decoding(
    settings: DecodingSettings, given: Mapping[str, Any], prompt_length: int, positions: int
) -> None:
    """Check that the arguments of a captioner fit the model, its prompt and each other.

    Args:
        settings: The model's own settings.
        given: The given arguments of `generate`.
        prompt_length: Number of tokens of the prompt, with the start token and without the end token.
        positions: Maximum length of a text.

    Raises:
        RecipeError: They do not. The message names them as options of the caption command.
    """
    decoding = decoding_arguments(settings, given)
    shortest, longest, beams = (decoding[name] for name in ("min_length", "max_length", "num_beams"))
    if not max(prompt_length + 1, shortest) <= longest <= positions:
        raise RecipeError(
            f"max_length is {longest} tokens, min_length {shortest}: expected max_length above the prompt's "
            f"{prompt_length} tokens, not below min_length, and at most the model's {positions}. Set --max_length and "
            "--min_length."
        )
    if decoding["do_sample"] and beams > 1:
        raise RecipeError(f"--num_beams is {beams}, but --do_sample samples without beams: give only one of them.")
    if not decoding["do_sample"] and beams < decoding.get("num_return_sequences", 1):
        count = decoding["num_return_sequences"]
        raise RecipeError(
            f"--num_captions is {count}, but there are {beams} beams, each of which gives one caption: set "
            f"--num_beams to {count} or more, or add --do_sample."
        )
    check_has_beams(given, beams)


def check_answer_decoding(settings: DecodingSettings, given: Mapping[str, Any], positions: int) -> None:
    """Check that the arguments of a question answerer fit the model and each other.

    Raises:
        RecipeError: They do not. The message names them as options of the answer command.
    """
    decoding = decoding_arguments(settings, given)
    check_has_beams(given, decoding["num_beams"])
    shortest, longest = decoding["min_length"], decoding["max_length"]
    if not max(2, shortest) <= longest <= positions:
        raise RecipeError(
            f"max_length is {longest} tokens, min_length {shortest}: expected max_length of at least 2, not below "
            f"min_length, and at most the model's {positions}. Set --max_length and --min_length."
        )
