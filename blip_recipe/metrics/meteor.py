"""METEOR 1.5 (Denkowski and Lavie, 2014, https://aclanthology.org/W14-3348), from the jar in pycocoevalcap."""

from __future__ import annotations

import logging
import queue
import re
from collections.abc import Sequence

from blip_recipe.metrics.errors import JavaEndedError, MeteorError, MetricTimeoutError
from blip_recipe.metrics.java import java_command, pycocoevalcap_file
from blip_recipe.metrics.java_process import JavaProcess
from blip_recipe.metrics.scores import ImageId, Values

logger = logging.getLogger(__name__)

# Its tables take 600 MB and stay: told so, the simplest collector loads them quickest and in half the usual memory.
OPTIONS = ("-Xms1G", "-Xmx2G", "-XX:+UseSerialGC", "-XX:MaxTenuringThreshold=0")
SECONDS_TO_START, SECONDS_A_CAPTION = 180, 60
FIELD = " ||| "
NUMBERS = re.compile(r"[-+.\deE ]+")


class Meteor:
    """Scores with one METEOR process, which lives from the first call to `close` or the end of the run.

    Args:
        java: The `java` to use.
        patience: Factor on the minute that a caption may take: METEOR's time grows with the square of its length.
    """

    def __init__(self, java: str, patience: float = 1.0) -> None:
        self.java, self.patience = java, patience
        self._process: JavaProcess | None = None

    def start(self) -> JavaProcess:
        """Start METEOR if it is not running, without waiting until it is ready (it loads for several seconds)."""
        if self._process is None or not self._process.alive:
            jar = str(pycocoevalcap_file("meteor", "meteor-1.5.jar"))
            arguments = ["-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
            self._process = JavaProcess("METEOR", java_command(self.java, OPTIONS, arguments))
        return self._process

    def close(self) -> None:
        """End METEOR; a next call starts it again."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def score(
        self, image_ids: Sequence[ImageId], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Values:
        """METEOR of the tokenized `captions`, one an image.

        Raises:
            JavaEndedError: METEOR ended by itself, or was killed twice; the message names the caption.
            MeteorError: METEOR answered something else than numbers.
            MetricTimeoutError: A caption took over `patience` minutes; the message names it.
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
            # What is left of the answer would be taken for the answer to the next call.
            self.close()
            raise
        return Values({"meteor": corpus}, {"meteor": values})

    def _receive(self, process: JavaProcess, name: str) -> str:
        limit = self.patience * (SECONDS_A_CAPTION + (0 if process.answered else SECONDS_TO_START))
        try:
            line = process.receive(limit)
        except queue.Empty as error:
            raise MetricTimeoutError(f"METEOR took over {limit:.0f} s for {name}.") from error
        except JavaEndedError as error:
            raise JavaEndedError(f"METEOR did not get past {name}: {error}", error.killed) from error
        if not NUMBERS.fullmatch(line):
            raise MeteorError(f"METEOR answered {line!r} for {name}: expected numbers.")
        return line


def score_line(caption: str, references: Sequence[str]) -> str:
    """What METEOR is asked: all references, then the caption, as `meteor.py` of pycocoevalcap does."""
    return FIELD.join(["SCORE", *references, caption.replace("|||", "").replace("  ", " ")])
