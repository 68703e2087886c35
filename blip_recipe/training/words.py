"""Split many texts into words at once, in Arrow's arrays: a hundred thousand Python lists would take longer."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable


def split_words(texts: Iterable[str]) -> pa.ListArray:
    """Split texts at white space, as `str.split` does."""
    array = pa.array(texts, pa.large_string())
    lists = pc.utf8_split_whitespace(array)
    # White space at an end of a text leaves an empty word there.
    words = lists.flatten()
    is_word = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    before = np.concatenate([[0], np.cumsum(is_word)])
    return _lists(before[offsets_of(lists)], words.filter(pa.array(is_word)))


def wrap(texts: pa.Array) -> pa.ListArray:
    """Lists of one text each."""
    return _lists(np.arange(len(texts) + 1), texts)


def cut_texts(words: pa.ListArray, limit: int | None) -> tuple[pa.ListArray, pa.ListArray]:
    """Keep the first `limit` words of each text; None keeps all.

    Returns:
        All texts after that, and those that were longer, as they were.
    """
    if limit is None:
        return words, words[:0]
    cut = words.filter(pc.greater(pc.list_value_length(words), limit))
    return pc.list_slice(words, 0, limit) if len(cut) else words, cut


def flatten_lists(lists: pa.ChunkedArray | list[list[str]]) -> tuple[list[str], list[int]]:
    """All texts of a column of lists, and the number in each list."""
    if isinstance(lists, list):
        return list(chain.from_iterable(lists)), list(map(len, lists))
    return pc.list_flatten(lists).to_pylist(), pc.list_value_length(lists).to_pylist()


def join_words(words: Any) -> str:
    """The text of a list of words, which is one row of `split_words`."""
    return " ".join(words.as_py())


def offsets_of(lists: pa.ListArray) -> np.ndarray:
    """The place of each list in all values of `lists.flatten()`, and at last their number."""
    return np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())])


def _lists(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
