"""ROUGE-L (Lin, 2004, https://aclanthology.org/W04-1013) as in the COCO caption tools.

It is an F-measure with beta 1.2 of the best precision and the best recall over the references.
"""

from __future__ import annotations

from collections.abc import Sequence

from blip_recipe.metrics.scores import Values, mean_of_images

# `rouge.py` of pycocoevalcap, `Rouge.__init__`.
BETA = 1.2


class RougeL:
    """ROUGE-L against fixed references.

    Args:
        references: The tokenized references of each image.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        # Split at single spaces like the COCO tools: an empty caption is one empty word.
        self.references = [[caption.split(" ") for caption in captions] for captions in references]

    def score(self, captions: Sequence[str]) -> Values:
        """Compute ROUGE-L of the tokenized `captions`, one per image."""
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
    """The positions of each word as the bits of an integer."""
    positions: dict[str, int] = {}
    for index, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << index
    return positions


def longest_common_subsequence(positions: dict[str, int], length: int, other: list[str]) -> int:
    """The length of the longest common subsequence of two captions, in words.

    The algorithm is bit-parallel (Hyyrö, 2004, "Bit-parallel LCS-length computation revisited"): one integer holds a
    row of the dynamic programming table, so captions of tens of thousands of words take a fraction of a second.

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
