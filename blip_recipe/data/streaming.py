"""Data larger than the disk: a split read from its shards while it is trained on, and never kept.

Shards (parquet files, webdataset tars, an imagefolder) are read lazily by `datasets`, from the Hub or from a directory.
Every process and every worker of its loader reads a stream of its own. A pass takes the shards in an order drawn from
the seed, and a stream takes every n-th of that endless sequence of passes: in a pass each row is read once, by one
stream, whatever their number, and no stream runs dry. Where there are fewer shards than streams, each is cut into
parts; a part costs reading its shard. A stream reads `shuffle_buffer_size` images, gives them in random order, and
reads on.

All random choices come from (seed, pass, shard, row), and a stream that goes on needs four numbers (`Position`) and
reads no more again than the shard it stopped in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import fsspec.asyn
import numpy as np
import torch

from blip_recipe.data.augmentation import augment
from blip_recipe.data.checks import SkippedRow, validate_captions
from blip_recipe.data.dataset import draw_captions
from blip_recipe.data.images import BadImageError
from blip_recipe.data.pixels import read_pixels
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from blip_recipe.data.shards import ShardedSplit, StreamedImage

logger = logging.getLogger(__name__)

SHARD_BITS = 32
"""A row's number in a batch is that of its shard, shifted by these bits, and that within its shard."""


class Position(NamedTuple):
    """Where a stream stands.

    Attributes:
        turn: The shard, counted over all passes and streams.
        row: The row in it that the shuffled images begin with.
        image: The number of that image in its shard.
        taken: How many of the shuffled images were taken.
    """

    turn: int
    row: int = 0
    image: int = 0
    taken: int = 0


@dataclass(frozen=True)
class Progress:
    """What a row, or a batch, tells of its stream.

    Attributes:
        worker: Which of the process's streams it is.
        position: Where that stands behind the row.
        images, captions: How many there are of the first pass, captions drawn or not.
        skipped: Rows that were left out on the way.
        fault: Why the stream ends here.
    """

    worker: int
    position: Position
    images: int = 0
    captions: int = 0
    skipped: tuple[SkippedRow, ...] = ()
    fault: str | None = None


class CaptionStream(torch.utils.data.IterableDataset):
    """The rows of a `ShardedSplit` without end, as `CaptionDataset` gives them, each with its `progress`.

    Args:
        split: Where the rows come from.
        image_size, captions_per_image, normalize_captions, augmentation, seed: As for `CaptionDataset`.
        shuffle_buffer_size: How many images are read before one of them is given.
        on_bad_image: Whether a picture that cannot be read ends the stream or is left out.
        process, processes: Which process of how many this is.
    """

    def __init__(
        self,
        split: ShardedSplit,
        *,
        image_size: int,
        captions_per_image: int | None,
        normalize_captions: bool,
        augmentation: Literal["blip", "none"],
        seed: int,
        shuffle_buffer_size: int,
        on_bad_image: Literal["fail", "skip"],
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.split = split
        self.image_size = image_size
        self.captions_per_image = captions_per_image
        self.normalize_captions = normalize_captions
        self.augmentation = augmentation
        self.seed = seed
        self.shuffle_buffer_size = shuffle_buffer_size
        self.on_bad_image = on_bad_image
        self.process, self.processes = process, processes
        self.shards = split.shards
        self.positions: Mapping[int, Position] = {}
        self.first_worker = 0

    def parts(self, workers: int) -> int:
        """Into how many parts each shard is cut, so that there is one for each stream of all processes."""
        return -(-self.processes * max(1, workers) // self.shards)

    def turns(self, workers: int) -> int:
        """How many shards, or parts of them, make a pass."""
        return self.shards * self.parts(workers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows `{"row", "image", "captions", "progress"}`, or `{"progress"}` alone with the fault that ends them."""
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # A loader asks its workers in turn, beginning with the first: it has to be the one whose turn it was.
        worker = (worker + self.first_worker) % workers
        if info:
            # A lock that the parent held when it forked would never be released here.
            fsspec.asyn.reset_lock()
        stream, streams = self.process * workers + worker, self.processes * workers
        start = self.positions.get(worker, Position(stream))
        try:
            yield from self._prepare(start, worker, _Layout(streams, self.parts(workers), self.turns(workers)))
        except RecipeError as error:
            # Raised in a worker, it would arrive as a traceback, and before anything could be saved.
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
                        f"None of the rows of a pass can be used; the last, {skipped[-1].image_id}: {fault}"
                    )
                continue
            captions = draw_captions(image.captions, self.captions_per_image, self.normalize_captions, rng)
            if self.augmentation == "blip":
                pixels = augment(pixels, self.image_size, rng)
            row = (place.shard << SHARD_BITS) + image.row
            counts = (1, len(image.captions)) if place.number == 0 else (0, 0)
            progress = Progress(worker, position, *counts, tuple(skipped))
            yield {"row": row, "image": pixels, "captions": captions, "progress": progress}
            skipped, last = [], position.turn

    def _open(self, image: StreamedImage) -> tuple[torch.Tensor | None, str]:
        """The pixels of an image, or what is wrong with it."""
        if fault := validate_captions(image.captions):
            return None, fault
        try:
            return read_pixels(self.split.picture(image.picture)), ""
        except BadImageError as error:
            return None, str(error)

    def _skip_or_raise(self, image: StreamedImage, shard: int, fault: str) -> SkippedRow:
        """A row that cannot be used, where it may be skipped.

        Raises:
            RecipeError: It may not.
        """
        where = self.split.where(shard, image.row)
        if self.on_bad_image == "fail":
            raise RecipeError(
                f"{where} cannot be used: {fault}\nRepair or remove it, or set on_bad_image to 'skip' to go on without."
            )
        logger.warning("Skipped %s: %s", where, fault)
        image_id = f"shard {shard}, row {image.row}" if image.image_id is None else image.image_id
        return SkippedRow(image.row, image_id, self.split.arguments.train_split, fault)

    def _shuffled(self, start: Position, layout: _Layout) -> Iterator[tuple[Position, _Place, StreamedImage]]:
        """Images in random order, each with the stream's position behind it and its place."""
        taken = start.taken
        for _, images in groupby(self._read(start, layout), lambda each: each[1].number):
            while block := list(islice(images, self.shuffle_buffer_size)):
                begin = block[0][0]
                order = np.random.default_rng([self.seed, *begin[:3]]).permutation(len(block)).tolist()
                # Those that were taken go at once, to make room for what workers prepare of them.
                waiting = [block[index] for index in reversed(order[taken:])]
                block.clear()
                for count in range(taken + 1, len(order) + 1):
                    _, place, image = waiting.pop()
                    yield begin._replace(taken=count), place, image
                taken = 0

    def _read(self, start: Position, layout: _Layout) -> Iterator[tuple[Position, _Place, StreamedImage]]:
        """The images of the stream's shards from `start` on, without end."""
        turn, row, number, last = start.turn, start.row, start.image, start.turn
        while True:
            place = self._locate(turn, layout)
            for image_number, image in enumerate(self.split.read(place.shard, row), number):
                if image_number % layout.parts == place.part:
                    last = turn
                    yield Position(turn, image.row, image_number), place, image
            turn, row, number = turn + layout.streams, 0, 0
            if turn - last > (layout.parts + 1) * layout.turns:
                raise RecipeError(f"{self.split.where(0, 0)} and all others hold no image: expected at least one.")

    def _locate(self, turn: int, layout: _Layout) -> _Place:
        number, within = divmod(turn, layout.turns)
        order = np.random.default_rng([self.seed, number]).permutation(self.shards)
        # Parts go round, so that no stream is left with one that has no images.
        return _Place(number, int(order[within % self.shards]), (within // self.shards + number) % layout.parts)


class _Place(NamedTuple):
    """What a turn stands for."""

    number: int
    """Of the pass."""
    shard: int
    part: int


class _Layout(NamedTuple):
    """How the shards of a pass are dealt out."""

    streams: int
    parts: int
    turns: int


@dataclass(frozen=True)
class StreamCollator:
    """Batches rows of a `CaptionStream`: those of `collator`, and the `progress` of the batch."""

    collator: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of `rows`; nothing but `progress` where the stream ended in it."""
        progress = [row["progress"] for row in rows]
        skipped = tuple(each for one in progress for each in one.skipped)
        images, captions = sum(each.images for each in progress), sum(each.captions for each in progress)
        last = replace(progress[-1], images=images, captions=captions, skipped=skipped)
        return {"progress": last} if last.fault else {**self.collator(rows), "progress": last}
