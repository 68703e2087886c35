"""Count the texts of a shard, and collect examples for the report."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from blip_recipe.capfilt.judging import KINDS, BadImage, JudgedImage, Text
from blip_recipe.card.thumbnails import encode_inline

if TYPE_CHECKING:
    from collections.abc import Mapping

BINS = 20
"""Number of histogram bins for scores from 0 to 1."""

EXAMPLES_PER_SORT = 12
"""Maximum number of examples of each sort in the report."""

THUMBNAIL = 160
"""Longer side of an example's picture in pixels."""

THUMBNAIL_QUALITY = 80

Candidate = tuple[float, int, int, JudgedImage, Text]
"""Priority, negative row and text index (the first one wins a tie), image and text."""


class Tally:
    """Counts and examples of a shard. Examples are sorted by kind, kept or dropped, near or far from the threshold."""

    def __init__(self, threshold: float, shards: int) -> None:
        self.threshold = threshold
        self.examples_kept = -(-EXAMPLES_PER_SORT // shards)
        self.images = self.images_kept = 0
        self.skipped: list[BadImage] = []
        self.kinds: dict[str, Any] = {kind: {"judged": 0, "kept": 0, "histogram": [0] * BINS} for kind in KINDS}
        self.examples: dict[str, list[Candidate]] = {}

    def count(self, image: JudgedImage) -> None:
        """Count an image and its texts."""
        self.images += 1
        self.images_kept += bool(image.kept)
        for number, text in enumerate(image.texts):
            counts = self.kinds[text.kind]
            counts["judged"] += 1
            counts["kept"] += text.kept
            counts["histogram"][min(int(text.score * BINS), BINS - 1)] += 1
            self._consider(image, number, text)

    def _consider(self, image: JudgedImage, number: int, text: Text) -> None:
        distance = abs(text.score - self.threshold)
        for where, wanted in (("near", -distance), ("far", distance)):
            sort = f"{text.kind} {'kept' if text.kept else 'dropped'} {where}"
            heap = self.examples.setdefault(sort, [])
            heapq.heappush(heap, (wanted, -image.row, -number, image, text))
            if len(heap) > self.examples_kept:
                heapq.heappop(heap)

    def note(self) -> dict[str, Any]:
        """All counts and examples, for JSON."""
        return {
            "images": self.images,
            "images_kept": self.images_kept,
            "skipped": [{"row": each.row, "reason": each.fault} for each in self.skipped],
            **self.kinds,
            "examples": {
                sort: [_as_example(image, text) for _, _, _, image, text in sorted(heap, reverse=True)]
                for sort, heap in sorted(self.examples.items())
            },
        }


def _as_example(image: JudgedImage, text: Text) -> dict[str, Any]:
    return {
        "row": image.row,
        "name": image.name,
        "text": text.text,
        "score": text.score,
        "thumbnail": encode_inline(image.content, THUMBNAIL, THUMBNAIL_QUALITY),
    }


def add_counts(notes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add the counts of all shards, as a flat dictionary for `all_results.json`."""
    notes = list(notes)
    done = [note for note in notes if "images" in note]
    totals: dict[str, Any] = {
        "shards": len(done),
        "shards_unreadable": len(notes) - len(done),
        "images": sum(note["images"] for note in done),
        "images_kept": sum(note["images_kept"] for note in done),
        "images_skipped": sum(len(note["skipped"]) for note in done),
    }
    for kind in KINDS:
        judged, kept = (sum(note[kind][part] for note in done) for part in ("judged", "kept"))
        totals |= {
            f"{kind}_judged": judged,
            f"{kind}_kept": kept,
            f"{kind}_kept_rate": kept / max(1, judged),
        }
    return totals
