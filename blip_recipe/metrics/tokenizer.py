"""PTB tokenization as in the COCO caption tools: lower case, no punctuation, words joined by single spaces."""

from __future__ import annotations

from collections.abc import Sequence

from blip_recipe.metrics.ptb_tokenizer import tokenize_lines

# `PUNCTUATIONS` in `ptbtokenizer.py` of pycocoevalcap. Brackets stay: they never match, because tokens are lower case.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# Characters that some programs treat as line ends become spaces. Lone surrogates, which cannot be encoded, become the
# replacement character.
SEPARATORS = dict.fromkeys(map(ord, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")
CLEAN = SEPARATORS | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def clean_caption(caption: str) -> str:
    """Put `caption` on one line, and make it encodable as UTF-8."""
    return caption.translate(CLEAN)


def tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenize captions from `clean_caption` as the COCO caption tools do.

    Raises:
        TokenizerError: The files of pycocoevalcap are not those of version 1.2.
    """
    lines = map(" ".join, tokenize_lines(captions))
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]
