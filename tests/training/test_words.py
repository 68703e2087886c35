"""Texts are split in Arrow's arrays as Python splits them."""

from __future__ import annotations

import sys

import pytest

from blip_recipe.training.words import cut_texts, split_words

SURROGATES = range(0xD800, 0xE000)
"""Code points that no text of Arrow can have."""


def test_words_are_those_of_str_split_for_every_character() -> None:
    characters = [chr(point) for point in range(sys.maxunicode + 1) if point not in SURROGATES]
    text = "x".join(characters)
    assert split_words([text]).to_pylist() == [text.split()]


@pytest.mark.parametrize(
    "texts",
    [[], [""], ["", " \t", "a", ""], ["\u2003a\x1cb \u0085", "  two  words\n"], ["a" * 50_000 + " b"] * 3],
    ids=["no text", "an empty text", "empty texts", "white space of all kinds", "long texts"],
)
def test_white_space_at_the_ends_leaves_no_word(texts: list[str]) -> None:
    assert split_words(texts).to_pylist() == [text.split() for text in texts]


@pytest.mark.parametrize(
    ("limit", "kept", "longer"),
    [
        (None, [["a", "b", "c"], [], ["d"]], []),
        (3, [["a", "b", "c"], [], ["d"]], []),
        (2, [["a", "b"], [], ["d"]], [["a", "b", "c"]]),
        (1, [["a"], [], ["d"]], [["a", "b", "c"]]),
    ],
)
def test_only_texts_over_the_limit_are_cut(limit: int | None, kept: list[list[str]], longer: list[list[str]]) -> None:
    found = cut_texts(split_words(["a b c", "", "d"]), limit)
    assert [each.to_pylist() for each in found] == [kept, longer]
