"""Look at the tokenised captions before training, and fit the lengths to them that are not given."""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from blip_recipe.data.rows import PROMPT
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.training.compatibility import check_prompt_fits
from blip_recipe.training.texts import (
    MAX_TEXTS,
    TokenizedTexts,
    batches_of_rows,
    describe_cut_tokens,
    describe_found,
    describe_words,
    shorten,
    split_texts,
)
from blip_recipe.training.words import cut_texts, flatten_lists

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase


class PromptedTexts(NamedTuple):
    """Captions, and the prompt of each."""

    texts: list[str]
    prompts: list[str]

    @classmethod
    def read(cls, datasets: Iterable[Any], prompt: str) -> PromptedTexts:
        """Read the captions to look at. Those of rows without a prompt of their own start with `prompt`."""
        texts: list[str] = []
        prompts: list[str] = []
        for dataset in datasets:
            for table in batches_of_rows(dataset, ["captions", PROMPT], in_arrow=True):
                captions, numbers = flatten_lists(table.get("captions", []))
                own = zip(map(str, table[PROMPT]), numbers, strict=True) if PROMPT in table else ()
                texts += captions
                prompts += chain.from_iterable(repeat(each, number) for each, number in own)
                prompts += repeat(prompt, len(texts) - len(prompts))
                if len(texts) >= MAX_TEXTS:
                    break
        return cls(texts[:MAX_TEXTS], prompts[:MAX_TEXTS])


MAX_LENGTH = 40
"""Maximum length of a training caption in tokens (`BLIP_Decoder.forward` in `models/blip.py` of the original)."""


def look_at_captions(
    args: Any,
    tokenizer: PreTrainedTokenizerBase,
    captions: PromptedTexts,
    references: PromptedTexts,
    positions: int,
) -> list[str]:
    """Look at the tokenised captions, and set the lengths of `args` that are None.

    Args:
        args: The `CaptionTrainingArguments`.
        tokenizer: The model's tokenizer.
        captions: The training captions with their prompts; none if nothing is trained.
        references: The references of the scored splits. They are cleaned like training captions, but not cut.
        positions: The maximum length of the model in tokens.

    Returns:
        A sentence for each thing that does not fit.
    """
    whole = split_texts(captions.texts, tokenizer, normalize=args.normalize_captions)
    limit = args.max_words if args.normalize_captions else None
    kept, cut = cut_texts(whole, limit)
    known: dict[str, list[int]] = {}
    train = TokenizedTexts.read(kept, tokenizer, captions.prompts, known)
    others = split_texts(references.texts, tokenizer, normalize=args.normalize_captions)
    scored = TokenizedTexts.read(others, tokenizer, references.prompts, known)
    fit_lengths(args, train.lengths, positions)
    prompts = dict.fromkeys([*captions.prompts, *references.prompts])
    args.has_own_prompts = not prompts.keys() <= {args.prompt}
    for prompt in prompts if args.has_own_prompts else ():
        check_prompt_fits(args, prompt, tokenizer, positions)
    return [
        *_describe_prompts(list(prompts) if args.has_own_prompts else []),
        *_describe_cut_words(cut, len(whole), limit),
        *describe_cut_tokens(train, args.max_caption_length, positions, "training caption"),
        *_describe_outside(args, scored, "reference"),
        *([] if scored.lengths else _describe_outside(args, train, "training caption")),
        *describe_words(tokenizer, "captions", train, scored),
    ]


def fit_lengths(args: Any, lengths: list[int], positions: int) -> None:
    """Set the lengths of `args` that are None.

    Generated captions are as long as the shortest to the longest training caption; without training captions, they
    have BLIP's lengths on COCO. `max_caption_length` is the original's 40, or the length of the longest training
    caption if it is longer.

    Args:
        args: The training arguments.
        lengths: The lengths of the training captions in tokens, with prompt, first token and `[SEP]`.
        positions: The maximum length of the model in tokens.
    """
    usual = DecodingSettings()
    # The maximum counts all tokens, the minimum those before `[SEP]`.
    shortest, longest = (min(lengths) - 1, max(lengths)) if lengths else (usual.min_length, usual.max_length)
    if args.generation_max_length is None:
        args.generation_max_length = min(positions, max(longest, args.generation_min_length or 0))
    if args.generation_min_length is None:
        args.generation_min_length = min(shortest, args.generation_max_length)
    if args.max_caption_length is None:
        args.max_caption_length = min(positions, max([MAX_LENGTH, *lengths]))


def _describe_prompts(prompts: list[str]) -> list[str]:
    if not prompts:
        return []
    return [
        f"Captions start with the prompts of their rows, which are not learnt: {len(prompts):,} different, such as "
        f"{shorten(prompts[0])}."
    ]


def _describe_cut_words(cut: pa.ListArray, total: int, limit: int | None) -> list[str]:
    longest = max(map(len, cut), default=0)
    fault = f"are cut to their first {limit} words (max_words)"
    return describe_found(cut, total, "training caption", fault, f"max_words {longest} would keep all of them")


def _describe_outside(args: Any, texts: TokenizedTexts, noun: str) -> list[str]:
    """Sentences on the texts that are too short or too long for a generated caption."""
    if not texts.lengths:
        return []
    ordered = sorted(texts.lengths)
    longest, most = ordered[-1], ordered[int(0.99 * (len(ordered) - 1))]
    advice = f"generation_max_length {longest} fits the longest"
    # A caption may end at the maximum without `[SEP]`.
    return [
        *describe_found(
            texts.find(lambda length: length - 1 < args.generation_min_length),
            len(ordered),
            noun,
            f"are shorter than generation_min_length {args.generation_min_length}",
            f"generation_min_length {ordered[0] - 1} fits the shortest",
        ),
        *describe_found(
            texts.find(lambda length: length - 1 > args.generation_max_length),
            len(ordered),
            noun,
            f"are longer than generation_max_length {args.generation_max_length}",
            advice if most == longest else f"{advice}, {most} fits 99% of them",
        ),
    ]
