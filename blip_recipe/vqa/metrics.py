"""VQAv2's accuracy: an answer is right as far as annotators gave it, after both sides are read the same way.

Source: the evaluation code of the data set's authors (`vqaEvaluation/vqaEval.py` of GT-Vision-Lab/VQA), and Antol et
al., arXiv 1505.00468, section 3: `min(annotators who gave the answer / 3, 1)`, averaged over the ten sets of nine.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_AGREEING = 3
"""Annotators that must have given an answer for it to be right altogether."""

_FIRST_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_FIRST_NUMBERS)}
ARTICLES = ("a", "an", "the")

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Characters that are taken out or become spaces. The colon and the apostrophe stay."""

_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
"""A period that no digit follows. (The official pattern also means to look in front of it, but never does.)"""
_MAX_PERIODS = 32
"""So many are taken out: the official code hands `re.UNICODE`, which is 32, to `re.sub` as the count."""

_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)


def _without_an_apostrophe(word: str) -> list[str]:
    """`word` without each of its apostrophes in turn."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _without_an_apostrophe(word)} | {
    "somebody'd": "somebodyd"  # the official table has this one the wrong way round
}
"""Contractions that lack an apostrophe, and how they are read. (Official entries with a capital never apply.)"""


def normalize_answer(answer: str) -> str:
    """An answer as the official code compares it.

    Punctuation goes: to nothing where a character stands beside a space anywhere in the answer, or where the answer has
    a number with a comma, else to a space. So do periods that no digit follows. Then letters become small, number words
    up to ten digits, articles disappear, and contractions get their apostrophe back.
    """
    plain = answer
    joins = _NUMBER_WITH_COMMA.search(answer) is not None
    for mark in PUNCTUATION:
        plain = plain.replace(mark, "" if joins or f"{mark} " in answer or f" {mark}" in answer else " ")
    plain = _PERIOD.sub("", plain, count=_MAX_PERIODS)
    words = (NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """How right `answer` is, from 0 to 1, by the `answers` of a question's annotators.

    Officially there are ten. Answers are compared as they are written where all annotators wrote the same, and by
    `normalize_answer` otherwise: so the official code does. Each annotator is left out once, and the answer is right by
    a third for each of the others who gave it, up to 1; the accuracy is the mean.

    With fewer than four annotators, where nobody could find three others, all others must have given it. A single
    answer, as plain data sets have, counts as 1 where both are the same after `normalize_answer`.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("answers is empty: expected those of the annotators.")
    given, written = _strip(answer), [_strip(each) for each in answers]
    if len(written) == 1 or len(set(written)) > 1:
        given, written = normalize_answer(given), [normalize_answer(each) for each in written]
    annotators, agreeing = len(written), written.count(given)
    if annotators == 1:
        return float(agreeing)
    enough = min(MIN_AGREEING, annotators - 1)
    among_others = agreeing * min((agreeing - 1) / enough, 1.0) + (annotators - agreeing) * min(agreeing / enough, 1.0)
    return among_others / annotators


def is_exact_match(answer: str, answers: Sequence[str]) -> float:
    """1 where `answer` is, after `normalize_answer`, one of the most frequent of `answers`, else 0.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("answers is empty: expected those of the annotators.")
    counts = Counter(normalize_answer(each) for each in answers)
    return float(counts[normalize_answer(answer)] == max(counts.values()))


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
