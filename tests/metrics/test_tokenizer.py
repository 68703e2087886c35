"""The tokenizer gives what the COCO tools' own tokenizer in Java gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import coco_captions, jar_lines, pycocoevalcap_tokens, references_of, scored_rows
from odd_texts import odd_texts

from blip_recipe.metrics.ptb_tables import FINAL, read_automaton
from blip_recipe.metrics.ptb_tokenizer import ACTIONS, START, tokenize_lines
from blip_recipe.metrics.tokenizer import clean_caption, tokenize

SPACE_ACTION, NEWLINE_ACTION, TAG_ACTIONS = 7, 5, {27, 28}

ANYTHING = st.text(st.characters(codec=None), max_size=40)


def assert_as_the_jar(lines: list[str]) -> None:
    """Compare all tokens, punctuation too, with those of the jar."""
    found = [" ".join(tokens) for tokens in tokenize_lines(lines)]
    pairs = zip(lines, map(str.rstrip, found), map(str.rstrip, jar_lines(lines)), strict=True)
    assert not [each for each in pairs if each[1] != each[2]][:5]


def test_captions_of_coco_are_cut_as_the_jar_does() -> None:
    assert_as_the_jar(coco_captions()[:10_000])


@pytest.mark.long
def test_all_captions_of_coco_are_cut_as_the_jar_does() -> None:
    assert_as_the_jar(coco_captions())


def test_captions_of_photographs_are_cut_as_the_jar_does(shared: Path) -> None:
    file = shared / "data" / "photos" / "annotations" / "captions_coco.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["annotations"]
    assert len(rows) > 100
    assert_as_the_jar([clean_caption(each["caption"]) for each in rows])


@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_made_texts_are_cut_as_the_jar_does(count: int) -> None:
    assert_as_the_jar(list(odd_texts(0, count)))


def test_tokens_are_those_of_the_tools(shared: Path) -> None:
    texts = references_of(scored_rows(shared, "raw_300"))
    lines = [clean_caption(text) for captions in texts.values() for text in captions]
    assert tokenize(lines) == [tokens for captions in pycocoevalcap_tokens(texts).values() for tokens in captions]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The dog's bone, isn't it?", "the dog 's bone is n't it"),
        ("You cannot & won't, AT&amp;T", "you can not & wo n't at&t"),
        ('"Mr. Smith" of the U.S. Army (½ mile)', "mr. smith of the u.s. army -lrb- 1/2 mile -rrb-"),
        ("a 3,000 sq. ft. house etc.", "a 3,000 sq. ft. house etc."),
        ("£5 or €3.50 -- cheap...", "# 5 or $ 3.50 cheap"),
        ("GRÖSSE 犬 😀 ΟΔΟΣ ΑΣ-ΒΑΣ", "grösse 犬 οδος ασ-βας"),
        ("", ""),
    ],
)
def test_words_are_cut_as_the_penn_treebank_does(text: str, tokens: str) -> None:
    assert tokenize([text, "next"]) == [tokens, "next"]
    assert tokenize([text]) == [tokens]


def test_a_tag_that_spans_captions_is_as_in_the_jar() -> None:
    assert_as_the_jar(["a dog <a b='", "'> and a cat", "two cats", "<a b='", "", "c", "'>.", "a man"])


@settings(max_examples=200, deadline=None)
@given(st.lists(ANYTHING, min_size=1, max_size=40))
def test_every_text_is_tokenized_to_one_line(texts: list[str]) -> None:
    tokens = tokenize([clean_caption(text) for text in texts])
    assert len(tokens) == len(texts)
    assert not any(set(line) & set("\n\r\u2028\u2029") for line in tokens)


def reachable(states: list[int]) -> set[int]:
    """The states of the automaton that can be reached from `states`, with these."""
    transitions = read_automaton().transitions
    reached: set[int] = set()
    while states:
        state = states.pop()
        if state >= 0 and state not in reached:
            reached.add(state)
            states += transitions[state]
    return reached


def actions_of(states: set[int]) -> set[int]:
    """The actions of the final ones of `states`."""
    automaton = read_automaton()
    return {automaton.actions[state] for state in states if automaton.attributes[state] & FINAL}


def test_no_token_begins_with_a_space_and_only_tags_hold_line_ends() -> None:
    """So that words between spaces can be tokenized one by one, and lines too."""
    automaton = read_automaton()
    space, newline = automaton.classes_of(" \n")
    assert actions_of(reachable([automaton.transitions[START][space]])) == {SPACE_ACTION}
    within = reachable([START]) - {START}
    with_newline = actions_of(reachable([automaton.transitions[state][newline] for state in within]))
    whole = {each for each in with_newline if not ACTIONS[each].context and not ACTIONS[each].back}
    assert whole == {NEWLINE_ACTION, *TAG_ACTIONS}
