"""Compute VQAv2's accuracy, the agreement of an answer with the annotators' answers.

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
"""Number of annotators who must agree with an answer for an accuracy of 1."""

_FIRST_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_FIRST_NUMBERS)}
ARTICLES = ("a", "an", "the")

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Characters that are removed or become spaces. Colons and apostrophes are kept."""

_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
"""A period that no digit follows. (The official pattern also tests the character before it, but without effect.)"""
_MAX_PERIODS = 32
"""Maximum number of removed periods: the official code passes `re.UNICODE` (32) to `re.sub` as the count."""

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
    """All spellings of `word` without one of its apostrophes."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _without_an_apostrophe(word)} | {
    "somebody'd": "somebodyd"  # reversed in the official table
}
"""Contractions without an apostrophe, and their correct spelling. (Official entries with a capital never match.)"""


def normalize_answer(answer: str) -> str:
    """Normalise an answer as the official code does.

    A punctuation character is removed if it is next to a space anywhere in the answer, or if the answer has a number
    with a comma; otherwise it becomes a space. Periods that no digit follows are removed. Then letters become lower
    case, number words up to ten become digits, articles are removed, and contractions get their apostrophe.
    """
    plain = answer
    joins = _NUMBER_WITH_COMMA.search(answer) is not None
    for mark in PUNCTUATION:
        plain = plain.replace(mark, "" if joins or f"{mark} " in answer or f" {mark}" in answer else " ")
    plain = _PERIOD.sub("", plain, count=_MAX_PERIODS)
    words = (NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """The accuracy of `answer`, from 0 to 1, given the `answers` of a question's annotators.

    VQAv2 has ten annotators. As in the official code, answers are compared after `normalize_answer`, unless all
    annotators gave the same answer. Each annotator is left out once; `min(n / 3, 1)` is computed for the `n` others who
    gave the answer, and averaged.

    With fewer than four annotators, all others must agree instead of three. With a single annotator, the accuracy is 1
    if both answers are equal after `normalize_answer`, else 0.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("answers is empty: expected the answers of the annotators.")
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
    """1 if `answer` is one of the most frequent of `answers` after `normalize_answer`, else 0.

    Raises:
        ValueError: There are no answers.
    """
    if not answers:
        raise ValueError("answers is empty: expected the answers of the annotators.")
    counts = Counter(normalize_answer(each) for each in answers)
    return float(counts[normalize_answer(answer)] == max(counts.values()))


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
