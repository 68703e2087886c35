"""SPICE 1.0 (Anderson et al., 2016, https://arxiv.org/abs/1607.08822), from the jar in pycocoevalcap.

Parsed captions are cached in the user's cache folder.
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

# Java packages that SPICE's libraries of 2016 access. Newer Java versions block this by default.
OPENED = ("lang", "math", "util", "util.concurrent", "net", "text")
OPTIONS = (
    "-Xmx3G",
    "-XX:+UseSerialGC",
    "-XX:+IgnoreUnrecognizedVMOptions",  # Java 8 does not know --add-opens
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in OPENED),
)
# SPICE's cache needs a native library, which exists only for these processors.
CAN_CACHE = platform.machine().lower() in ("x86_64", "amd64")
# Parsing takes 0.1 s for ten words and grows with the cube of the length: 140 s for 200 words.
MAX_WORDS = 200
SECONDS_TO_START, SECONDS_A_CAPTION, SECONDS_FOR_100_WORDS = 300, 1, 100


def spice(
    java: str,
    image_ids: Sequence[ImageId],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    patience: float = 1.0,
) -> Values:
    """Compute SPICE of the tokenized `captions`, one per image.

    Raises:
        CaptionTooLongError: A caption or reference has more than 200 words. The message names its image.
        SpiceJarsError: The parser is missing and cannot be downloaded.
        SpiceError: Java failed, or files could not be written.
        MetricTimeoutError: SPICE took more than `patience` times ten times the expected time. The message names the
            longest caption.
    """
    logger.info("SPICE scores %d images; parsing takes about 0.1 s per new caption.", len(captions))
    limit = patience * seconds_allowed(image_ids, captions, references)
    rows = zip(captions, references, strict=True)
    # SPICE returns the ids unchanged, so row indices work as ids.
    items = [{"image_id": index, "test": test, "refs": list(refs)} for index, (test, refs) in enumerate(rows)]
    try:
        with tempfile.TemporaryDirectory(dir=cache_folder("spice")) as folder:
            results = run_spice(java, Path(folder), items, limit)
    except OSError as error:
        raise SpiceError(f"SPICE could not write its files: {error}.") from error
    except subprocess.TimeoutExpired as error:
        longest = max(zip(image_ids, captions, strict=True), key=lambda row: len(row[1]))
        raise MetricTimeoutError(
            f"SPICE took over {limit:.0f} s for {len(captions)} images. The longest caption belongs to image "
            f"{longest[0]!r} ({longest[1][:80]!r})."
        ) from error
    values = [0.0] * len(items)
    for result in results:
        values[result["image_id"]] = float(result["scores"]["All"]["f"])
    return mean_of_images("spice", values)


def seconds_allowed(
    image_ids: Sequence[ImageId], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """The time limit: ten times the parsing time on one core."""
    seconds = float(SECONDS_TO_START)
    for image_id, caption, known in zip(image_ids, captions, references, strict=True):
        for text in (caption, *known):
            words = len(text.split())
            if words > MAX_WORDS:
                raise CaptionTooLongError(
                    f"image {image_id!r} has a caption of {words} words ({text[:80]!r}): SPICE parses at most "
                    f"{MAX_WORDS} words, more would take minutes to hours. Drop the caption, or leave out spice."
                )
            seconds += SECONDS_A_CAPTION + SECONDS_FOR_100_WORDS * (words / 100) ** 3
    return seconds


def run_spice(java: str, folder: Path, items: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Run SPICE on `items` with files in `folder`, for at most `limit` seconds."""
    question, answer = folder / "captions.json", folder / "scores.json"
    question.write_text(json.dumps(items), encoding="ascii")
    room = pycocoevalcap_file("spice")
    jars = [room / "spice-1.0.jar", *spice_jars(), room / "lib" / "*"]
    options = [*OPTIONS, f"-Djava.io.tmpdir={folder}", "-cp", os.pathsep.join(map(str, jars))]
    cache = ["-cache", str(cache_folder("spice", "parses"))] if CAN_CACHE else []
    arguments = ["edu.anu.spice.SpiceScorer", str(question), "-out", str(answer), "-silent", *cache]
    ended = subprocess.run(java_command(java, options, arguments), capture_output=True, timeout=limit)
    if ended.returncode or not answer.exists():
        raise SpiceError(f"SPICE ended with status {ended.returncode}: {stderr_tail(ended.stderr)}")
    results: list[dict[str, Any]] = json.loads(answer.read_text("utf-8"))
    return results
