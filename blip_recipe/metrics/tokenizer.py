"""PTB tokenization as the COCO caption tools do it: lower case, punctuation dropped, words joined by single spaces."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from blip_recipe.metrics.errors import MetricTimeoutError, TokenizerError
from blip_recipe.metrics.java import java_command, pycocoevalcap_file, stderr_tail

# `ptbtokenizer.py` of pycocoevalcap, `PUNCTUATIONS`. Brackets never match, since tokens are in lower case: they stay.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# What some reader of lines takes for the end of one becomes a space; a lone surrogate, which no encoding can write, the
# replacement character.
SEPARATORS = dict.fromkeys(map(ord, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")
CLEAN = SEPARATORS | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
# A short-lived process: less compiling and one collector start it a quarter faster.
OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
SECONDS_TO_START, CHARACTERS_A_SECOND = 60, 20_000


def clean_caption(caption: str) -> str:
    """`caption` on one line and fit for UTF-8."""
    return caption.translate(CLEAN)


def tokenize_with_java(java: str, captions: Sequence[str], patience: float = 1.0) -> list[str]:
    """Tokenize `captions` (each of one line) with the jar of the COCO tools.

    Raises:
        TokenizerError: Java failed, or did not give back one line a caption.
        MetricTimeoutError: It took over `patience` times a minute and 50 µs a character.
    """
    jar = pycocoevalcap_file("tokenizer", "stanford-corenlp-3.4.1.jar")
    main = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "\n".join(captions)
    limit = patience * (SECONDS_TO_START + len(text) / CHARACTERS_A_SECOND)
    try:
        answer = subprocess.run(
            java_command(java, OPTIONS, main), input=text.encode(), capture_output=True, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        longest = max(captions, key=len)
        raise MetricTimeoutError(
            f"the PTB tokenizer took over {limit:.0f} s for {len(captions)} captions; the longest has {len(longest)} "
            f"characters and begins {longest[:80]!r}."
        ) from error
    lines = answer.stdout.decode().split("\n")
    if answer.returncode or len(lines) != len(captions):
        raise TokenizerError(
            f"the PTB tokenizer gave {len(lines)} lines for {len(captions)} captions and ended with "
            f"{answer.returncode}; Java says: {stderr_tail(answer.stderr)}"
        )
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]
