"""PTB tokenization as in the COCO caption tools: lower case, no punctuation, words joined by single spaces."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from blip_recipe.metrics.errors import MetricTimeoutError, TokenizerError
from blip_recipe.metrics.java import java_command, pycocoevalcap_file, stderr_tail

# `PUNCTUATIONS` in `ptbtokenizer.py` of pycocoevalcap. Brackets stay: they never match, because tokens are lower case.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# Characters that some programs treat as line ends become spaces. Lone surrogates, which cannot be encoded, become the
# replacement character.
SEPARATORS = dict.fromkeys(map(ord, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")
CLEAN = SEPARATORS | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
# With less compilation and a simple garbage collector, this short-lived process starts a quarter faster.
OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
SECONDS_TO_START, CHARACTERS_A_SECOND = 60, 20_000


def clean_caption(caption: str) -> str:
    """Put `caption` on one line, and make it encodable as UTF-8."""
    return caption.translate(CLEAN)


def tokenize_with_java(java: str, captions: Sequence[str], patience: float = 1.0) -> list[str]:
    """Tokenize `captions` (one line each) with the jar of the COCO tools.

    Raises:
        TokenizerError: Java failed, or did not return one line per caption.
        MetricTimeoutError: It took more than `patience` times one minute plus 50 µs per character.
    """
    jar = pycocoevalcap_file("tokenizer", "stanford-corenlp-3.4.1.jar")
    main = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "\n".join(captions)
    limit = patience * (SECONDS_TO_START + len(text) / CHARACTERS_A_SECOND)
    try:
        # In a session of its own: a signal to the whole job, which the trainer answers, does not end it.
        answer = subprocess.run(
            java_command(java, OPTIONS, main),
            input=text.encode(),
            capture_output=True,
            timeout=limit,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        longest = max(captions, key=len)
        raise MetricTimeoutError(
            f"the PTB tokenizer took over {limit:.0f} s for {len(captions)} captions. The longest one has "
            f"{len(longest)} characters and begins with {longest[:80]!r}."
        ) from error
    lines = answer.stdout.decode().split("\n")
    if answer.returncode or len(lines) != len(captions):
        raise TokenizerError(
            f"the PTB tokenizer returned {len(lines)} lines for {len(captions)} captions and ended with status "
            f"{answer.returncode}: {stderr_tail(answer.stderr)}"
        )
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]
