"""VQAv2's accuracy agrees with the official definition, on its edge cases and by enumeration."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip_recipe.vqa.metrics import CONTRACTIONS, is_exact_match, normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        # Articles and case.
        ("The dog", "dog"),
        ("a an the", ""),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),
        # Numbers: words up to ten, "none" is zero.
        ("two", "2"),
        ("TEN", "10"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("twenty one", "twenty 1"),
        # Contractions get their apostrophe back, one at a time.
        ("dont", "don't"),
        ("Dont know", "don't know"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("ow's'at", "'ow's'at"),
        ("yall", "y'all"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("well", "well"),
        # Punctuation between words is a space, beside a space nothing.
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("b-c, d-e", "b c d e"),
        ("yes!", "yes"),
        ("x-y -z", "xy z"),
        ("12:30", "12:30"),
        ("jack's", "jack's"),
        ("&", "&"),
        # Punctuation inside numbers; a comma in a number takes all punctuation out.
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("3.", "3"),
        ("u.s.a.", "usa"),
        ("st. john", "st john"),
        ("5.a", "5a"),
        ("." * 40, "." * 8),
        # Nothing.
        ("", ""),
        ("   ", ""),
        ("?", ""),
        ("big   \t dog", "big dog"),
    ],
)
def test_answers_are_read_as_officially(answer: str, read: str) -> None:
    assert normalize_answer(answer) == read


@pytest.mark.parametrize(
    ("answer", "answers", "accuracy"),
    [
        # By hand: with one of ten agreeing, nine of ten left-out sets see it once: 9/10 * 1/3.
        ("cat", ["cat"] + ["dog"] * 9, 0.3),
        ("cat", ["cat"] * 2 + ["dog"] * 8, 0.6),  # 8/10 * 2/3 + 2/10 * 1/3
        ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9),  # 7/10 * 1 + 3/10 * 2/3
        ("cat", ["cat"] * 4 + ["dog"] * 6, 1.0),
        ("cat", ["cat"] * 10, 1.0),
        ("fox", ["cat"] * 10, 0.0),
        # Ties: both answers of five annotators each are right altogether.
        ("cat", ["cat"] * 5 + ["dog"] * 5, 1.0),
        ("dog", ["cat"] * 5 + ["dog"] * 5, 1.0),
        # Different spellings of one answer count together, as they are read and not as they are written.
        ("2", ["two"] * 2 + ["2"] * 2 + ["3"] * 6, 1.0),
        ("a dog", ["dog"] * 9 + ["the dog"], 1.0),
        ("Don't know", ["dont know"] * 9 + ["no"], 1.0),
        ("1,000", ["1000"] * 9 + ["many"], 1.0),
        ("3,5", ["3.5"] * 9 + ["4"], 0.0),
        # Where all annotators wrote the same, letters are compared as they are.
        ("two", ["2"] * 10, 0.0),
        ("The dog", ["dog"] * 10, 0.0),
        ("Dog", ["dog"] * 10, 0.0),
        ("yes!", ["yes!"] * 10, 1.0),
        # Line breaks and tabs are spaces, and go at the ends.
        ("hot\ndog", ["hot dog"] * 10, 1.0),
        ("hot dog", ["hot\tdog"] * 10, 1.0),
        ("\thot dog\n", ["hot dog"] * 10, 1.0),
        # Empty answers are answers.
        ("", [""] * 10, 1.0),
        ("", ["cat"] * 10, 0.0),
        ("the", [""] * 5 + ["a"] * 5, 1.0),
        ("cat", ["", *["cat"] * 9], 1.0),
        # Fewer annotators.
        ("The cat.", ["cat"], 1.0),
        ("cats", ["cat"], 0.0),
        ("cat", ["cat", "cat"], 1.0),
        ("cat", ["cat", "dog"], 0.5),
        ("cat", ["cat", "cat", "dog"], (0.5 + 0.5 + 1) / 3),
        ("cat", ["cat", "cat", "dog", "dog"], (1 / 3 + 1 / 3 + 2 / 3 + 2 / 3) / 4),
    ],
)
def test_accuracy_by_hand(answer: str, answers: list[str], accuracy: float) -> None:
    assert vqa_accuracy(answer, answers) == pytest.approx(accuracy, abs=1e-12)


def enumerated_accuracy(answer: str, answers: list[str]) -> float:
    """The official definition, word by word: leave each annotator out, and count among the others."""
    if len(set(answers)) > 1:
        answer, answers = normalize_answer(answer), [normalize_answer(each) for each in answers]
    total = 0.0
    for left_out in range(len(answers)):
        others = [each for annotator, each in enumerate(answers) if annotator != left_out]
        total += min(1.0, sum(each == answer for each in others) / 3)
    return total / len(answers)


ANSWERS = st.sampled_from(["2", "two", "cat", "a cat", "the cat!", "dont", "don't", "1,000", "1000", "3.5", ""])


@settings(deadline=None, max_examples=300)
@given(ANSWERS, st.lists(ANSWERS, min_size=10, max_size=10))
def test_accuracy_is_the_enumerated_definition(answer: str, answers: list[str]) -> None:
    assert vqa_accuracy(answer, answers) == pytest.approx(enumerated_accuracy(answer, answers), abs=1e-12)


@given(st.text(max_size=30))
def test_reading_an_answer_that_was_read_changes_no_word(answer: str) -> None:
    read = normalize_answer(answer)
    assert not set(read) & set(';/[]"{}()=+\\_-><@`,?!\n\t')
    assert read == " ".join(read.split())


def test_a_contraction_is_read_as_one() -> None:
    # All entries of the official table, less four with capitals and two that change nothing ("let's", "she's").
    assert len(CONTRACTIONS) == 114
    assert all("'" in right for wrong, right in CONTRACTIONS.items() if wrong != "somebody'd")


@pytest.mark.parametrize(("answer", "match"), [("cat", 1.0), ("The cat.", 1.0), ("dog", 1.0), ("fox", 0.0), ("", 0.0)])
def test_an_exact_match_is_one_of_the_most_frequent_answers(answer: str, match: float) -> None:
    assert is_exact_match(answer, ["cat", "a cat", "dog", "dog", "fox"]) == match


@pytest.mark.parametrize("score", [vqa_accuracy, is_exact_match])
def test_a_question_without_answers_cannot_be_scored(score: object) -> None:
    with pytest.raises(ValueError, match="answers is empty"):
        score("cat", [])  # type: ignore[operator]
