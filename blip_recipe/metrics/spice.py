"""SPICE 1.0 (Anderson et al., 2016, https://arxiv.org/abs/1607.08822), from the jar that pycocoevalcap carries.

Each caption is parsed once: the parses stay in the user's cache folder.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip_recipe.metrics.cache_folder import cache_folder
from blip_recipe.metrics.errors import CaptionTooLongError, MetricTimeoutError, SpiceError
from blip_recipe.metrics.java import java_command, pycocoevalcap_file, stderr_tail
from blip_recipe.metrics.scores import ImageId, Values, mean_of_images
from blip_recipe.metrics.spice_jars import spice_jars

logger = logging.getLogger(__name__)

# What its libraries of 2016 reach into, and newer Javas close unless told.
OPENED = ("lang", "math", "util", "util.concurrent", "net", "text")
OPTIONS = (
    "-Xmx3G",
    "-XX:+UseSerialGC",
    "-XX:+IgnoreUnrecognizedVMOptions",  # Java 8 has nothing to open
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in OPENED),
)
# The cache is a native library, which is there for these processors alone.
CAN_CACHE = platform.machine().lower() in ("x86_64", "amd64")
# Parsing takes 0.1 s for a caption of ten words and grows with the cube of its length: 140 s for 200 words.
MAX_WORDS = 200
SECONDS_TO_START, SECONDS_A_CAPTION, SECONDS_FOR_100_WORDS = 300, 1, 100


def spice(
    java: str,
    image_ids: Sequence[ImageId],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    patience: float = 1.0,
) -> Values:
    """SPICE of the tokenized `captions`, one an image.

    Raises:
        CaptionTooLongError: A caption or reference has over 200 words; the message names its image.
        SpiceJarsError: The parser is not here and cannot be fetched.
        SpiceError: Java or the disk failed; the message carries Java's.
        MetricTimeoutError: It took `patience` times ten times as long as it should; the message names the longest
            caption.
    """
    logger.info("SPICE scores %d images; a caption it has not seen takes about 0.1 s to parse.", len(captions))
    limit = patience * seconds_allowed(image_ids, captions, references)
    rows = zip(captions, references, strict=True)
    # Numbers for ids: SPICE gives back what it is given, and sorts nothing.
    items = [{"image_id": index, "test": test, "refs": list(refs)} for index, (test, refs) in enumerate(rows)]
    try:
        with tempfile.TemporaryDirectory(dir=cache_folder("spice")) as folder:
            results = run_spice(java, Path(folder), items, limit)
    except OSError as error:
        raise SpiceError(f"SPICE could not write what it needs: {error}.") from error
    except subprocess.TimeoutExpired as error:
        longest = max(zip(image_ids, captions, strict=True), key=lambda row: len(row[1]))
        raise MetricTimeoutError(
            f"SPICE took over {limit:.0f} s for {len(captions)} images; the longest caption is that of image "
            f"{longest[0]!r} ({longest[1][:80]!r})."
        ) from error
    values = [0.0] * len(items)
    for result in results:
        values[result["image_id"]] = float(result["scores"]["All"]["f"])
    return mean_of_images("spice", values)


def seconds_allowed(
    image_ids: Sequence[ImageId], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Ten times the time that parsing takes on one processor core."""
    seconds = float(SECONDS_TO_START)
    for image_id, caption, known in zip(image_ids, captions, references, strict=True):
        for text in (caption, *known):
            words = len(text.split())
            if words > MAX_WORDS:
                raise CaptionTooLongError(
                    f"SPICE parses captions of up to {MAX_WORDS} words, longer ones would take it minutes to hours: "
                    f"image {image_id!r} has one of {words} words ({text[:80]!r}). Drop it, or leave out spice."
                )
            seconds += SECONDS_A_CAPTION + SECONDS_FOR_100_WORDS * (words / 100) ** 3
    return seconds


def run_spice(java: str, folder: Path, items: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Let SPICE score `items` with files in `folder`, for at most `limit` seconds."""
    question, answer = folder / "captions.json", folder / "scores.json"
    question.write_text(json.dumps(items), encoding="ascii")
    room = pycocoevalcap_file("spice")
    jars = [room / "spice-1.0.jar", *spice_jars(), room / "lib" / "*"]
    options = [*OPTIONS, f"-Djava.io.tmpdir={folder}", "-cp", os.pathsep.join(map(str, jars))]
    cache = ["-cache", str(cache_folder("spice", "parses"))] if CAN_CACHE else []
    arguments = ["edu.anu.spice.SpiceScorer", str(question), "-out", str(answer), "-silent", *cache]
    ended = subprocess.run(java_command(java, options, arguments), capture_output=True, timeout=limit)
    if ended.returncode or not answer.exists():
        raise SpiceError(f"SPICE ended with status {ended.returncode}; Java says: {stderr_tail(ended.stderr)}")
    results: list[dict[str, Any]] = json.loads(answer.read_text("utf-8"))
    return results
