"""Stream training rows from shards, for data sets larger than the disk.

`datasets` reads shards (parquet files, webdataset tars, an imagefolder) lazily from the Hub or a directory. Each worker
of each process reads its own stream. A pass visits all shards in random order, and n streams share the endless sequence
of passes: each stream takes every n-th shard. So a pass reads each row once, and no stream ends before the others. If
there are fewer shards than streams, each shard is divided into parts, and each part reads the whole shard. A stream
shuffles `shuffle_buffer_size` images at a time.

Random choices are seeded with (seed, pass, shard, row). A stream resumes from four numbers (`Position`), and reads at
most the shard again in which it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import fsspec.asyn
import numpy as np
import torch

from blip_recipe.data.augmentation import augment
from blip_recipe.data.captions import MAX_WORDS
from blip_recipe.data.checks import SkippedRow, name_fault
from blip_recipe.data.dataset import draw_texts
from blip_recipe.data.images import BadImageError, describe, digest, read_content
from blip_recipe.data.pixels import read_pixels
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from blip_recipe.data.shards import ShardedSplit, StreamedRow

logger = logging.getLogger(__name__)

SCORED = "its picture is also in the evaluation or test split, so that it is not trained on"

SHARD_BITS = 32
"""The number of a row is its shard shifted by this many bits, plus its row in the shard."""


class Position(NamedTuple):
    """The position of a stream.

    Attributes:
        turn: Index of the shard in the sequence of all passes.
        row: First row of the current shuffle buffer in its shard.
        image: Index of that row's image in its shard.
        taken: Number of images taken from the buffer.
    """

    turn: int
    row: int = 0
    image: int = 0
    taken: int = 0


@dataclass(frozen=True)
class Progress:
    """The progress of a stream, attached to each row and batch.

    Attributes:
        worker: The worker that reads the stream.
        position: Position of the stream after the row.
        images, texts: Number of images and of all their texts, counted in the first pass only.
        skipped: Rows skipped since the previous row.
        fault: The error that ends the stream, if any.
    """

    worker: int
    position: Position
    images: int = 0
    texts: int = 0
    skipped: tuple[SkippedRow, ...] = ()
    fault: str | None = None


class PictureStream(torch.utils.data.IterableDataset):
    """Base class of endless streams of the rows of a `ShardedSplit`, in the format of a `PictureDataset`.

    Args:
        split: The shards.
        image_size, augmentation, seed: As for `PictureDataset`.
        shuffle_buffer_size: Number of rows to shuffle at a time.
        on_bad_image: Whether to stop at a row that cannot be used (`"fail"`) or to skip it (`"skip"`).
        process, processes: Rank of this process, and number of processes.
    """

    def __init__(
        self,
        split: ShardedSplit,
        *,
        image_size: int,
        augmentation: Literal["blip", "none"],
        seed: int,
        shuffle_buffer_size: int,
        on_bad_image: Literal["fail", "skip"],
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.split = split
        self.image_size = image_size
        self.augmentation = augmentation
        self.seed = seed
        self.shuffle_buffer_size = shuffle_buffer_size
        self.on_bad_image = on_bad_image
        self.process, self.processes = process, processes
        self.shards = split.shards
        self.positions: Mapping[int, Position] = {}
        self.first_worker = 0

    def draw(self, image: StreamedRow, rng: np.random.Generator) -> dict[str, Any]:
        """What an item has besides `row` and `image`; it is drawn before the picture is augmented."""
        raise NotImplementedError

    def order(self, block: Sequence[StreamedRow], rng: np.random.Generator) -> list[int]:
        """The order in which the rows of a shuffle buffer are yielded."""
        return rng.permutation(len(block)).tolist()

    def parts(self, workers: int) -> int:
        """Number of parts of each shard, so that every stream of all processes gets at least one."""
        return -(-self.processes * max(1, workers) // self.shards)

    def turns(self, workers: int) -> int:
        """Number of shards (or parts of shards) in a pass."""
        return self.shards * self.parts(workers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield items with their `progress`, and after an error `{"progress"}` with its fault."""
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # A DataLoader always starts with worker 0. On resuming, it must read the stream whose turn it was.
        worker = (worker + self.first_worker) % workers
        if info:
            # A lock that the parent held while forking would never be released here.
            fsspec.asyn.reset_lock()
        stream, streams = self.process * workers + worker, self.processes * workers
        start = self.positions.get(worker, Position(stream))
        try:
            yield from self._prepare(start, worker, _Layout(streams, self.parts(workers), self.turns(workers)))
        except RecipeError as error:
            # Pass the error on as a row: raised in a worker, it would end the run before anything is saved.
            yield {"progress": Progress(worker, start, fault=str(error))}

    def _prepare(self, start: Position, worker: int, layout: _Layout) -> Iterator[dict[str, Any]]:
        skipped: list[SkippedRow] = []
        last = start.turn
        for position, place, image in self._shuffled(start, layout):
            rng = np.random.default_rng([self.seed, place.number, place.shard, image.row])
            pixels, fault = self._open(image)
            if pixels is None:
                skipped.append(self._skip_or_raise(image, place.shard, fault))
                if position.turn - last > (layout.parts + 1) * layout.turns:
                    raise RecipeError(
                        f"No row of a whole pass can be used. The last one, {skipped[-1].image_id}: {fault}"
                    )
                continue
            texts = self.draw(image, rng)
            if self.augmentation == "blip":
                pixels = augment(pixels, self.image_size, rng)
            row = (place.shard << SHARD_BITS) + image.row
            counts = (1, len(image.texts[self.split.texts.counted])) if place.number == 0 else (0, 0)
            progress = Progress(worker, position, *counts, tuple(skipped))
            yield {"row": row, "image": pixels, **texts, "progress": progress}
            skipped, last = [], position.turn

    def _open(self, image: StreamedRow) -> tuple[torch.Tensor | None, str]:
        """Read the pixels of an image, or return None and what is wrong with it."""
        if fault := name_fault(self.split.texts.validate(image.texts), image.picture):
            return None, fault
        try:
            picture = self.split.picture(image.picture)
            if self.split.scored:
                picture = {"bytes": read_content(picture), "path": describe(picture)}
                if digest(picture["bytes"]) in self.split.scored:
                    return None, SCORED
            return read_pixels(picture), ""
        except BadImageError as error:
            return None, str(error)

    def _skip_or_raise(self, image: StreamedRow, shard: int, fault: str) -> SkippedRow:
        """Record a row that cannot be used, if rows may be skipped.

        Raises:
            RecipeError: `on_bad_image` is `"fail"`.
        """
        where = self.split.where(shard, image.row)
        if self.on_bad_image == "fail" and fault != SCORED:
            raise RecipeError(
                f"{where} cannot be used: {fault}\nRepair or remove it. To leave it out, set on_bad_image to 'skip' in "
                "a recipe, or filter the stream in a script (`dataset.filter`)."
            )
        logger.warning("Skipped %s: %s", where, fault)
        image_id = f"shard {shard}, row {image.row}" if image.image_id is None else image.image_id
        return SkippedRow(image.row, image_id, self.split.arguments.train_split, fault)

    def _shuffled(self, start: Position, layout: _Layout) -> Iterator[tuple[Position, _Place, StreamedRow]]:
        """Yield images in random order, each with the position after it and its place."""
        taken = start.taken
        for _, images in groupby(self._read(start, layout), lambda each: each[1].number):
            while block := list(islice(images, self.shuffle_buffer_size)):
                begin = block[0][0]
                order = self.order([image for *_, image in block], np.random.default_rng([self.seed, *begin[:3]]))
                # Free images as soon as they are taken, to save memory.
                waiting = [block[index] for index in reversed(order[taken:])]
                block.clear()
                for count in range(taken + 1, len(order) + 1):
                    _, place, image = waiting.pop()
                    yield begin._replace(taken=count), place, image
                taken = 0

    def _read(self, start: Position, layout: _Layout) -> Iterator[tuple[Position, _Place, StreamedRow]]:
        """Yield the images of the stream's shards from `start` on, endlessly."""
        turn, row, number, last = start.turn, start.row, start.image, start.turn
        while True:
            place = self._locate(turn, layout)
            for image_number, image in enumerate(self.split.read(place.shard, row), number):
                if image_number % layout.parts == place.part:
                    last = turn
                    yield Position(turn, image.row, image_number), place, image
            turn, row, number = turn + layout.streams, 0, 0
            if turn - last > (layout.parts + 1) * layout.turns:
                raise RecipeError(f"{self.split.title} has no image in any shard: expected at least one.")

    def _locate(self, turn: int, layout: _Layout) -> _Place:
        number, within = divmod(turn, layout.turns)
        order = np.random.default_rng([self.seed, number]).permutation(self.shards)
        # Rotate parts from pass to pass, so no stream always gets a part without images.
        return _Place(number, int(order[within % self.shards]), (within // self.shards + number) % layout.parts)


class CaptionStream(PictureStream):
    """A stream of the items of a `CaptionDataset`.

    Args:
        split: The shards.
        captions_per_image, normalize_captions, max_words: As for `CaptionDataset`.
        kwargs: Arguments of `PictureStream`.
    """

    def __init__(
        self,
        split: ShardedSplit,
        *,
        captions_per_image: int | None,
        normalize_captions: bool,
        max_words: int | None = MAX_WORDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(split, **kwargs)
        self.captions_per_image = captions_per_image
        self.normalize_captions, self.max_words = normalize_captions, max_words

    def draw(self, image: StreamedRow, rng: np.random.Generator) -> dict[str, Any]:
        """Draw and clean captions."""
        return draw_texts(image.texts, self.captions_per_image, self.normalize_captions, self.max_words, rng)


class _Place(NamedTuple):
    """The pass, shard and part of a turn."""

    number: int
    """Index of the pass."""
    shard: int
    part: int


class _Layout(NamedTuple):
    """Number of streams, of parts per shard, and of turns in a pass."""

    streams: int
    parts: int
    turns: int


@dataclass(frozen=True)
class StreamCollator:
    """Collate rows of a `PictureStream` with `collator`, and add the `progress` of the batch."""

    collator: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate `rows`. If the stream ended in them, return only `progress`."""
        progress = [row["progress"] for row in rows]
        skipped = tuple(each for one in progress for each in one.skipped)
        images, texts = sum(each.images for each in progress), sum(each.texts for each in progress)
        last = replace(progress[-1], images=images, texts=texts, skipped=skipped)
        return {"progress": last} if last.fault else {**self.collator(rows), "progress": last}
