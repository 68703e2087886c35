"""Caption batches of pictures, with scores of the captions, and choose the best of several with a matcher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from blip_recipe.data.images import Picture, open_image
from blip_recipe.data.listing import read_ahead

if TYPE_CHECKING:
    from blip_recipe.captioning.pipeline import ImageToTextPipeline
    from blip_recipe.runtime.captioner import ExportedCaptioner

Item = TypeVar("Item")

DIGITS = 6
"""Decimals of scores."""

SEVERAL = {"caption": "captions", "score": "scores", "match": "matches"}
"""The field that has the values of all captions of a picture, for each field of the first caption."""


Captioned = tuple[list[list[str]], list[list[float]] | None]
"""The captions of each picture, and their scores or None."""


class CaptionMatcher(Protocol):
    """Scores how well captions match pictures (`models.matching.Matcher`, or `ExportedMatcher`)."""

    def preprocess(self, picture: Picture) -> Any:
        """The pixels `(1, 3, height, width)` of a picture."""
        ...

    def match(self, pixel_values: Sequence[Any], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """The probability that each text matches its picture, each `(1, 3, height, width)`."""
        ...


class Pixels(NamedTuple):
    """A picture's pixels for the captioner and for the matcher, each `(1, 3, height, width)`, as tensor or array."""

    for_captioner: Any
    for_matcher: Any


@dataclass(frozen=True)
class CaptionWriter:
    """Write captions with the decoding of a pipeline.

    Attributes:
        pipeline: The captioner, with its arguments of `generate`.
        with_scores: Whether to give the mean log-probability per token of each caption.
        matcher: Gives the probability that each caption matches, and puts the best caption first.
        prefix: Text before each caption.
        suffix: Text after each caption.
    """

    pipeline: ImageToTextPipeline | ExportedCaptioner
    with_scores: bool = False
    matcher: CaptionMatcher | None = None
    prefix: str = ""
    suffix: str = ""

    def read(self, picture: Picture) -> Pixels | Exception:
        """Read a picture, or return the error of reading it."""
        try:
            opened = open_image(picture)
            for_matcher = self.matcher.preprocess(opened) if self.matcher else None
            return Pixels(self.pipeline.preprocess(opened)["pixel_values"], for_matcher)
        except Exception as error:  # a file may hold anything: the caller reports the error
            return error

    def write(self, pictures: Sequence[Pixels]) -> list[dict[str, Any]]:
        """Caption pictures.

        Returns:
            The fields of each picture: `caption`, with scores also `score`, with a matcher also `match`; and for
            several captions lists of all their values (`SEVERAL`).
        """
        return self._to_fields(pictures, *self._caption(pictures))

    def _caption(self, pictures: Sequence[Pixels]) -> Captioned:
        """The captions of each picture, and their scores if they are asked for."""
        if not pictures:
            return [], None
        return self.pipeline.caption_pixels([each.for_captioner for each in pictures], with_scores=self.with_scores)

    def _to_fields(
        self, pictures: Sequence[Pixels], captions: list[list[str]], scores: list[list[float]] | None
    ) -> list[dict[str, Any]]:
        """Match the captions, and put all values of each picture together."""
        matches = None
        if self.matcher and pictures:
            matches = self.matcher.match([each.for_matcher for each in pictures], captions)
        rows = []
        for number, own in enumerate(captions):
            found: dict[str, list[Any]] = {"caption": [f"{self.prefix}{caption}{self.suffix}" for caption in own]}
            found |= {
                name: [round(value, DIGITS) for value in values[number]]
                for name, values in (("score", scores), ("match", matches))
                if values is not None
            }
            rows.append(_fields(found))
        return rows

    def write_all(
        self, pictures: Iterable[tuple[Item, Picture]], batch_size: int, count: int | None = None
    ) -> Iterator[tuple[Item, dict[str, Any] | Exception]]:
        """Caption pictures in order; yields each item with the fields of its picture, or the error of reading it.

        Two batches of pictures are opened while others are captioned. Captions are matched in the thread of the caller,
        because not every matcher may be called from several.

        Args:
            pictures: Each picture with the item that stands for it.
            batch_size: Pictures in a batch.
            count: The number of pictures, if it is known. The last batch is then about as large as the others.
        """
        batch_count = None
        if count:
            batch_count = -(-count // batch_size)
            batch_size = -(-count // batch_count)
        opened = read_ahead(lambda each: self.read(each[1]), pictures, ahead=2 * batch_size)
        batches = iter(lambda: list(islice(opened, batch_size)), [])
        for batch, captioned in self.pipeline.map_batches(
            lambda batch: self._caption(_readable(batch)), batches, batch_count
        ):
            fields = iter(self._to_fields(_readable(batch), *captioned))
            for (item, _), read in batch:
                yield item, next(fields) if isinstance(read, Pixels) else read


def _readable(batch: Iterable[tuple[Any, Pixels | Exception]]) -> list[Pixels]:
    """The pictures of a batch that could be read."""
    return [read for _, read in batch if isinstance(read, Pixels)]


def _fields(found: dict[str, list[Any]]) -> dict[str, Any]:
    """The values of the first caption, and of all if there are several; the caption that matches best is first."""
    count = len(found["caption"])
    matches = found.get("match", [0.0] * count)
    order = sorted(range(count), key=lambda number: -matches[number])  # without matches the order stays
    ordered = {name: [values[number] for number in order] for name, values in found.items()}
    fields: dict[str, Any] = {name: values[0] for name, values in ordered.items()}
    return fields if count == 1 else fields | {SEVERAL[name]: values for name, values in ordered.items()}
