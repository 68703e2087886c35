"""Look at the tokenised texts of a run before training: texts that are cut, and words that the tokenizer changes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset

from blip_recipe.data.captions import clean_caption
from blip_recipe.data.dataset import PictureDataset
from blip_recipe.data.streaming import PictureStream
from blip_recipe.models.vocabulary import cut_words, find_changed_words, is_bert
from blip_recipe.training.words import join_words, offsets_of, split_words, wrap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAX_TEXTS = 100_000
"""The number of texts that are looked at: the first ones of the training split, and as many of all scored splits."""

MAX_ITEMS = 1000
"""The number of rows that are looked at in a torch data set, where reading a text reads its picture too."""

MAX_POSITIONS = 512
"""Maximum length of BLIP in tokens (`configs/med_config.json` of the original)."""

SHOWN = 60
"""Maximum length of an example in characters."""


@dataclass(frozen=True)
class TokenizedTexts:
    """Some texts with their lengths.

    Attributes:
        words: Each text without the prompt, as `split_texts` splits it.
        lengths: The lengths of the texts in tokens, with the prompt, the first token and `[SEP]`.
        unknown: The number of tokens that are `[UNK]`, without those of the prompt.
        counts: All words, with numbers of occurrences.
    """

    words: pa.ListArray
    lengths: list[int]
    unknown: int
    counts: Counter[str]

    @classmethod
    def read(
        cls,
        words: pa.ListArray,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str | Sequence[str] = "",
        known: dict[str, list[int]] | None = None,
    ) -> TokenizedTexts:
        """Tokenise texts that `split_texts` has split, and begin with `prompt`, or each with its own.

        BERT's tokenizer cuts at spaces first, so each different word is tokenised only once. Words of `known`, which
        gets the new ones, are not tokenised again.
        """
        parts = words if is_bert(tokenizer) else wrap(pa.array(map(join_words, words), pa.large_string()))
        found = parts.flatten().dictionary_encode()
        numbers, different = found.indices.to_numpy(), found.dictionary.to_pylist()
        occurrences = np.bincount(numbers, minlength=len(different)).tolist()
        ids = {} if known is None else known
        ids |= _tokenize(tokenizer, [part for part in different if part not in ids])
        unknown_id = tokenizer.unk_token_id
        prompts = [prompt] * len(parts) if isinstance(prompt, str) else prompt
        starts = {each: len(tokenizer(each).input_ids) for each in set(prompts)}
        # The tokens before each word, summed, and so the tokens of each text as a difference.
        before = np.concatenate([[0], np.cumsum(np.array([len(ids[part]) for part in different], np.int64)[numbers])])
        lengths = np.diff(before[offsets_of(parts)]) + np.array([starts[own] for own in prompts], np.int64)
        return cls(
            words,
            lengths.tolist(),
            sum(number * ids[part].count(unknown_id) for part, number in zip(different, occurrences, strict=True)),
            Counter(dict(zip(different, occurrences, strict=True))),
        )

    def find(self, is_wrong: Callable[[np.ndarray], np.ndarray]) -> pa.ListArray:
        """The words of each text whose length is wrong."""
        return self.words.filter(pa.array(is_wrong(np.array(self.lengths, np.int64))))


def split_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, normalize: bool = False) -> pa.ListArray:
    """Split texts into words for `TokenizedTexts.read`: once for cleaning, counting and lengths.

    Args:
        texts: The texts.
        tokenizer: The tokenizer. Texts for one that does not cut at spaces stay whole.
        normalize: Whether to clean the texts as captions are.
    """
    if normalize:
        return split_words(map(clean_caption, texts))
    return split_words(texts) if is_bert(tokenizer) else wrap(pa.array(texts, pa.large_string()))


def _tokenize(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> dict[str, list[int]]:
    if not words:
        return {}
    if not is_bert(tokenizer):
        ids = tokenizer(words, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
        return dict(zip(words, ids, strict=True))
    # Without the lists of offsets and types that the tokenizer itself would make of each word, in twice the time.
    backend = cast("Any", tokenizer).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    found = backend.encode_batch_fast(words, add_special_tokens=False)
    return {word: each.ids for word, each in zip(words, found, strict=True)}


def texts_of(dataset: Any, *columns: str) -> Iterator[str]:
    """The texts to look at in some columns of a trainer's rows, data set or stream; none of None."""
    table = first_rows(dataset, columns)
    cells = chain.from_iterable(table.get(column, ()) for column in columns)
    return islice(chain.from_iterable([cell] if isinstance(cell, str) else cell for cell in cells), MAX_TEXTS)


def first_rows(dataset: Any, columns: Sequence[str]) -> Mapping[str, list[Any]]:
    """Those of some columns that a trainer's rows, data set or stream has, for the rows to look at; none of None."""
    return next(batches_of_rows(dataset, columns, size=MAX_TEXTS), {})


def batches_of_rows(
    dataset: Any, columns: Sequence[str], size: int = 10_000, *, in_arrow: bool = False
) -> Iterator[Mapping[str, Any]]:
    """Yield `first_rows` in batches of `size` rows, with Arrow's columns on request where a data set has them."""
    if dataset is None:
        return
    rows = dataset.rows if isinstance(dataset, PictureDataset) else dataset
    rows = rows.split.sample() if isinstance(rows, PictureStream) else rows
    limit = MAX_TEXTS if isinstance(rows, Dataset) else MAX_ITEMS
    found = [column for column in columns if column in rows.column_names]
    numbers = range(min(limit, len(rows)))
    table = rows.select_columns(found)
    has_arrow = in_arrow and isinstance(rows, Dataset)
    table = table.with_format("arrow") if has_arrow else table
    for start in range(0, max(1, len(numbers)), size):
        batch = table[numbers[start : start + size]]
        yield dict(zip(batch.column_names, batch.columns, strict=True)) if has_arrow else batch


def scored_texts(scored: Any, *columns: str) -> Iterator[str]:
    """The texts to look at in one or several scored data sets."""
    several = scored.values() if isinstance(scored, Mapping) else [scored]
    return islice(chain.from_iterable(texts_of(each, *columns) for each in several), MAX_TEXTS)


def describe_found(found: pa.ListArray, total: int, noun: str, fault: str, advice: str) -> list[str]:
    """A sentence on the texts, split into words, that have a fault: number, share, example; none if there are none."""
    if not len(found):
        return []
    number = f"{len(found):,} of {total:,} {noun}s ({format_share(len(found), total)})"
    return [f"{number} {fault}, such as {shorten(join_words(found[0]))}: {advice}."]


def describe_cut_tokens(texts: TokenizedTexts, limit: int, positions: int, noun: str) -> list[str]:
    """A sentence on the texts that `max_caption_length` cuts; none if there are none."""
    longest = max(texts.lengths, default=0)
    advice = f"max_caption_length {longest} would keep all of them"
    if longest > positions:
        advice = f"the longest has {longest:,} tokens, and the model reads at most {positions}"
    fault = f"are cut to {limit} tokens (max_caption_length)"
    return describe_found(texts.find(lambda length: length > limit), len(texts.words), noun, fault, advice)


def describe_words(tokenizer: PreTrainedTokenizerBase, nouns: str, *tokenized: TokenizedTexts) -> list[str]:
    """A sentence on the words that the tokenizer changes; none if there are none."""
    counts: Counter[str] = Counter()
    for each in tokenized:
        counts.update(each.counts)
    words = cut_words(counts)
    changed = find_changed_words(words, tokenizer)
    if not changed:
        return []
    most = sorted(changed, key=words.__getitem__, reverse=True)[:3]
    examples = ", ".join(f"{shorten(word)} to {shorten(changed[word])}" for word in most)
    number, total = sum(words[word] for word in changed), words.total()
    unknown, tokens = sum(each.unknown for each in tokenized), sum(sum(each.lengths) for each in tokenized)
    return [
        f"The tokenizer changes {number:,} of {total:,} words of the {nouns} ({format_share(number, total)}), such as "
        f"{examples}; {format_share(unknown, tokens)} of all tokens are {tokenizer.unk_token}: set add_tokens to true, "
        "which adds what is missing, or tokenizer_name to another tokenizer."
    ]


def report(notes: Sequence[str], args: Any) -> None:
    """Keep the notes of a look in `args.text_notes` for the card, and warn of them on the first process."""
    args.text_notes = list(notes)
    for note in notes if args.process_index == 0 else ():
        logger.warning("%s", note)


def format_share(part: int, total: int) -> str:
    """A share in percent, such as `2.5%` or `under 0.01%`."""
    share = 100 * part / max(1, total)
    if 0 < share < 0.01:
        return "under 0.01%"
    return f"{share:.2g}%" if share < 99.5 else f"{share:.0f}%"


def shorten(text: str) -> str:
    """A text as a literal of at most `SHOWN` characters."""
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")
