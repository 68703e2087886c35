"""METEOR 1.5 (Denkowski and Lavie, 2014, https://aclanthology.org/W14-3348), from the jar in pycocoevalcap."""

from __future__ import annotations

import logging
import queue
import re
from collections.abc import Sequence

import numpy as np

from blip_recipe.metrics.errors import JavaEndedError, MeteorError, MetricTimeoutError
from blip_recipe.metrics.java import java_command, pycocoevalcap_file
from blip_recipe.metrics.java_process import JavaProcess
from blip_recipe.metrics.scores import ImageId, Values
from blip_recipe.metrics.statistics import Numbers, Statistics

logger = logging.getLogger(__name__)

# METEOR's tables take 600 MB. With these settings they load fastest, and in half the memory of Java's defaults.
OPTIONS = ("-Xms1G", "-Xmx2G", "-XX:+UseSerialGC", "-XX:MaxTenuringThreshold=0")
SECONDS_TO_START, SECONDS_A_CAPTION = 180, 60
FIELD = " ||| "
NUMBERS = re.compile(r"[-+.\deE ]+")

# The jar's parameters for English (Denkowski and Lavie, 2014): alpha, beta, gamma and delta, and the weights of exact,
# stem, synonym and paraphrase matches.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])

# Columns of the jar's statistics: lengths of caption and reference and their function words; for each kind of match the
# content words and the function words matched in both; chunks; matched words of both.
LENGTHS, FUNCTION_WORDS, MATCHES, CHUNKS, MATCHED_WORDS = slice(2), slice(2, 4), slice(4, 20), 20, slice(21, 23)


class Meteor:
    """METEOR in one Java process, which runs from the first call to `close`, or to the end of the run.

    Args:
        java: The `java` executable.
        patience: Factor on the time limit of one minute per caption. METEOR's time is quadratic in the length.
    """

    def __init__(self, java: str, patience: float = 1.0) -> None:
        self.java, self.patience = java, patience
        self._process: JavaProcess | None = None

    def start(self) -> JavaProcess:
        """Start METEOR if it is not running, without waiting for it to load (several seconds)."""
        if self._process is None or not self._process.alive:
            jar = str(pycocoevalcap_file("meteor", "meteor-1.5.jar"))
            arguments = ["-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
            self._process = JavaProcess("METEOR", java_command(self.java, OPTIONS, arguments))
        return self._process

    def close(self) -> None:
        """End METEOR. The next call starts it again."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def score(
        self, image_ids: Sequence[ImageId], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Values:
        """Compute METEOR of the tokenized `captions`, one per image.

        Raises:
            JavaEndedError: METEOR crashed, or was killed twice. The message names the caption.
            MeteorError: METEOR returned something else than numbers.
            MetricTimeoutError: A caption took more than `patience` minutes. The message names it.
        """
        lines = [score_line(caption, known) for caption, known in zip(captions, references, strict=True)]
        names = [f"image {each!r} ({caption[:80]!r})" for each, caption in zip(image_ids, captions, strict=True)]
        try:
            return self._ask(lines, names)
        except JavaEndedError as error:
            if not error.killed:
                raise
            logger.warning("%s. METEOR is started again.", error)
            return self._ask(lines, names)

    def _ask(self, lines: list[str], names: list[str]) -> Values:
        process = self.start()
        try:
            process.send(lines)
            statistics = [self._receive(process, name) for name in names]
            process.send([FIELD.join(["EVAL", *statistics])])
            values = [float(self._receive(process, name)) for name in names]
            corpus = float(self._receive(process, "the whole set"))
        except BaseException:
            # Otherwise the next call would read the rest of this answer.
            self.close()
            raise
        rows = whole_captions_without_chunks(np.array([line.split() for line in statistics], float))
        return Values({"meteor": corpus}, {"meteor": values}, (Statistics(("meteor",), rows, meteor_of_sums),))

    def _receive(self, process: JavaProcess, name: str) -> str:
        limit = self.patience * (SECONDS_A_CAPTION + (0 if process.answered else SECONDS_TO_START))
        try:
            line = process.receive(limit)
        except queue.Empty as error:
            raise MetricTimeoutError(f"METEOR took over {limit:.0f} s for {name}.") from error
        except JavaEndedError as error:
            raise JavaEndedError(f"METEOR did not get past {name}: {error}", error.killed) from error
        if not NUMBERS.fullmatch(line):
            raise MeteorError(f"METEOR returned {line!r} for {name}: expected numbers.")
        return line


def score_line(caption: str, references: Sequence[str]) -> str:
    """Build METEOR's input line: all references, then the caption, as in `meteor.py` of pycocoevalcap."""
    return FIELD.join(["SCORE", *references, caption.replace("|||", "").replace("  ", " ")])


def whole_captions_without_chunks(rows: Numbers) -> Numbers:
    """The statistics of captions as the jar adds them up: a caption that matches as a whole has no chunk."""
    matched = rows[:, MATCHES].reshape(-1, len(WEIGHTS), 2, 2).sum((1, 2))
    whole = (rows[:, CHUNKS] == 1) & (matched == rows[:, LENGTHS]).all(1)
    rows[whole, CHUNKS] = 0
    return rows


def meteor_of_sums(sums: Numbers) -> Numbers:
    """Compute METEOR `(..., 1)` of many sets from the sums of their captions' statistics `(..., 23)`.

    The formula is that of the jar, which scores a set by its sums.
    """
    content_and_function = np.array([DELTA, 1 - DELTA])
    matches = sums[..., MATCHES].reshape(*sums.shape[:-1], len(WEIGHTS), 2, 2)
    matched = np.einsum("k,...kws,w->...s", WEIGHTS, matches, content_and_function)
    function_words = sums[..., FUNCTION_WORDS]
    words = DELTA * (sums[..., LENGTHS] - function_words) + (1 - DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / words, -1, 0)
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        penalty = GAMMA * (sums[..., CHUNKS] / sums[..., MATCHED_WORDS].mean(-1)) ** BETA
    return np.nan_to_num(mean * (1 - penalty))[..., None]
