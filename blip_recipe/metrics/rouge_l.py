"""ROUGE-L (Lin, 2004, https://aclanthology.org/W04-1013) as the COCO caption tools compute it.

Precision and recall are each the best over the references, and meet in an F-measure with beta 1.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from blip_recipe.metrics.scores import Values, mean_of_images

# `rouge.py` of pycocoevalcap, `Rouge.__init__`.
BETA = 1.2


class RougeL:
    """ROUGE-L against fixed references, kept as words.

    Args:
        references: The tokenized references of each image.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        # Words are cut at single spaces, as the tools do: an empty caption is one empty word.
        self.references = [[caption.split(" ") for caption in captions] for captions in references]

    def score(self, captions: Sequence[str]) -> Values:
        """ROUGE-L of the tokenized `captions`, one an image."""
        values = [
            f_measure(caption.split(" "), words) for caption, words in zip(captions, self.references, strict=True)
        ]
        return mean_of_images("rouge_l", values)


def f_measure(words: list[str], references: list[list[str]]) -> float:
    """The F-measure of the best precision and the best recall of `words` over the references."""
    positions = word_positions(words)
    common = [longest_common_subsequence(positions, len(words), reference) for reference in references]
    precision = max(common) / len(words)
    recall = max(each / len(reference) for each, reference in zip(common, references, strict=True))
    if precision == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def word_positions(words: list[str]) -> dict[str, int]:
    """For each word the positions where it stands, as the bits of a number."""
    positions: dict[str, int] = {}
    for index, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << index
    return positions


def longest_common_subsequence(positions: dict[str, int], length: int, other: list[str]) -> int:
    """The number of words that two captions share in order.

    Bit-parallel (Hyyrö, 2004, "Bit-parallel LCS-length computation revisited"): a row of the usual table is one
    integer, so captions of tens of thousands of words take a fraction of a second.

    Args:
        positions: `word_positions` of the first caption.
        length: Its number of words.
        other: The words of the second caption.
    """
    every = (1 << length) - 1
    row = every
    for word in other:
        matches = row & positions.get(word, 0)
        if matches:
            row = (row + matches | row - matches) & every
    return length - row.bit_count()
