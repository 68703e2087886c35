"""What is counted of a shard while it is judged, and the examples that the report shows of it."""

from __future__ import annotations

import base64
import heapq
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from blip_recipe.capfilt.judging import KINDS, BadImage, JudgedImage, Text
from blip_recipe.data.images import open_image

if TYPE_CHECKING:
    from collections.abc import Mapping

BINS = 20
"""Equal parts of the scores from 0 to 1 that are counted."""

EXAMPLES_PER_SORT = 12
"""Examples of each sort that the report has."""

THUMBNAIL = 160
"""Longest side in pixels of an example's picture."""

Candidate = tuple[float, int, int, JudgedImage, Text]
"""How much it is wanted, its place (negative, so that the first wins), the image and its text."""


class Tally:
    """Counts of a shard, and its best examples of each sort: of which kind, kept or not, near the threshold or far."""

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
        """All of it as JSON."""
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
        "thumbnail": thumbnail(image.content),
    }


def thumbnail(content: bytes) -> str:
    """A picture's file as a small JPEG in base64."""
    picture = open_image(content)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def add_counts(notes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all shards together: a flat table of numbers, as `all_results.json` has it."""
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
