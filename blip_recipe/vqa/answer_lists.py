"""Read a list of answers to choose from, or make it of the answers to training questions.

The module does not import torch, so that a wrong file is found before a model is loaded.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, get_args

from blip_recipe.errors import RecipeError
from blip_recipe.vqa.metrics import normalize_answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

ANSWER_LIST_FILE = "answer_list.json"
"""File in the output directory with the answers that a run ranked, a JSON list of texts."""

FROM_TRAINING = "train"
"""The value of `answer_list` that makes the list of the training questions."""

MIN_QUESTIONS = 9
"""The number of questions that an answer of VQAv2's usual list has at least
(`tools/compute_softscore.py` of hengyuan-hu/bottom-up-attention-vqa)."""

RANKED_ANSWERS = 128
"""Number of answers whose loss is computed in full (`k_test` in the original's `configs/vqa.yaml`)."""

RankBy = Literal["smoothed_loss", "likelihood"]
RANK_BY: tuple[RankBy, ...] = get_args(RankBy)
"""What answers can be ranked by: the loss with label smoothing, as in the original, or the likelihood."""

SMOOTHING = {"smoothed_loss": 0.1, "likelihood": 0.0}
"""The label smoothing of the loss that answers are ranked by; 0.1 in the original."""

EXPECTED = "expected a JSON list of texts, or a text a line."


def read_answer_list(file: Path, key: str) -> list[str]:
    """The distinct answers of a file, in order: a JSON list of texts, or one answer a line.

    Args:
        file: The file; it is JSON if its name ends with `.json`.
        key: The key or option that names the file, for messages.

    Raises:
        RecipeError: The file cannot be read, or has no answers.
    """
    try:
        content = file.read_text(encoding="utf-8-sig")
        found: Any = json.loads(content) if file.suffix.lower() == ".json" else content.splitlines()
    except (OSError, ValueError) as error:
        raise RecipeError(f"{key} {file} cannot be read: {error}.") from error
    if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
        raise RecipeError(f"{key} {file} is not a list of answers: {EXPECTED}")
    answers = list(dict.fromkeys(answer.strip() for answer in found if answer.strip()))
    if not answers:
        raise RecipeError(f"{key} {file} is empty: {EXPECTED}")
    return answers


def frequent_answers(answers: Iterable[Sequence[str]], min_questions: int = MIN_QUESTIONS) -> list[str]:
    """Make a list of answers from those of the annotators, by the usual rule for VQAv2.

    The most frequent answer of a question (the first given, of several) is normalised as for scoring
    (`normalize_answer`). The list has the answers of at least `min_questions` questions, the most frequent first,
    without the empty answer.

    BLIP's list of 3,128 answers is the usual one of VQAv2's training and validation questions without its empty answer
    (its author in issue 40 of salesforce/ALBEF). The usual one takes a question's most frequent answer from VQAv2's
    file; where several are equally frequent, that can be another one than ours.

    Args:
        answers: The answers of the annotators of each question.
        min_questions: The number of questions that an answer needs.
    """
    counts = Counter(normalize_answer(Counter(each).most_common(1)[0][0]) for each in answers if each)
    return [answer for answer, count in counts.most_common() if count >= min_questions and answer]
