"""Write captions for pictures with the captioner, and score them and the web texts with the filter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from blip_recipe.capfilt.sampling import sample_captions
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.data.captions import normalize_caption, validate_captions
from blip_recipe.data.checks import name_fault
from blip_recipe.data.images import path_of, read_content
from blip_recipe.data.listing import read_ahead
from blip_recipe.data.pixels import normalize_pixels, read_pixels, resize_pixels, stack_pixels
from blip_recipe.errors import RecipeError
from blip_recipe.models.loading import load_finished
from blip_recipe.models.matching import match_probabilities
from blip_recipe.retrieval.modeling import BlipForRetrieval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import BlipProcessor

    from blip_recipe.capfilt.arguments import CapFiltArguments
    from blip_recipe.data.shards import ShardedSplit, StreamedRow
    from blip_recipe.models.stock import StockModel

Kind = Literal["web", "synthetic"]
KINDS: tuple[Kind, ...] = ("web", "synthetic")
"""Texts from the web, and captions from the captioner."""

DIGITS = 6
"""Decimals of scores. Rounded scores are compared with the threshold."""


class Text(NamedTuple):
    """A scored text: its kind, the text, its probability of matching, and whether it is kept."""

    kind: Kind
    text: str
    score: float
    kept: bool


@dataclass(frozen=True)
class JudgedImage:
    """A picture with its scored texts.

    Attributes:
        row: Its row in the shard.
        image_id: Its id in the data set, if any.
        name: Its file name in the source, if known.
        content: Its encoded file.
        texts: Its texts, web texts first.
    """

    row: int
    image_id: int | str | None
    name: str | None
    content: bytes
    texts: list[Text]

    @property
    def kept(self) -> list[Text]:
        """The texts that are kept."""
        return [text for text in self.texts if text.kept]


@dataclass(frozen=True)
class BadImage:
    """A picture that cannot be used: its row in the shard, and the reason."""

    row: int
    fault: str


@dataclass(frozen=True)
class _ReadImage:
    """The encoded file of a picture, and its pixels resized for the captioner and the filter."""

    content: bytes
    for_captioner: torch.Tensor
    for_filter: torch.Tensor


class Judge:
    """The filter and, with `num_generations` above 0, the captioner on the device of this process."""

    def __init__(self, arguments: CapFiltArguments, device: torch.device) -> None:
        self.arguments, self.device = arguments, device
        bf16 = arguments.bf16
        if bf16 is None:
            bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        load = {"device": device, "dtype": self.dtype}
        self.filter, self.filter_processor, _ = load_model(
            "filter_name_or_path",
            arguments.filter_name_or_path,
            BlipForRetrieval,
            revision=arguments.filter_revision,
            **load,
        )
        self.captioner: Any = None
        self.captioner_processor, self.prompt = self.filter_processor, ""
        if arguments.num_generations:
            self.captioner, self.captioner_processor, self.prompt = load_model(
                "captioner_name_or_path",
                arguments.captioner_name_or_path,
                BlipForCaptioning,
                revision=arguments.captioner_revision,
                **load,
            )
            self.prompt = self.prompt if arguments.prompt is None else arguments.prompt
            check_lengths(arguments, self.captioner_processor, self.prompt)

    def judge(self, split: ShardedSplit, images: Iterable[StreamedRow]) -> Iterator[JudgedImage | BadImage]:
        """Caption and score the images of a shard in order. Threads read the next pictures meanwhile."""
        opened = read_ahead(partial(self._read, split), images, ahead=2 * self.arguments.batch_size)
        while batch := list(islice(opened, self.arguments.batch_size)):
            good = [(image, read) for image, read in batch if isinstance(read, _ReadImage)]
            judged = iter(self._judge_batch(good) if good else ())
            for image, read in batch:
                yield next(judged) if isinstance(read, _ReadImage) else BadImage(image.row, read)

    def _read(self, split: ShardedSplit, image: StreamedRow) -> _ReadImage | str:
        """Read a picture and its pixels, or return what is wrong with it."""
        # An image without a text, or with one without words, is fine: the captioner writes one.
        captions = list(filter(normalize_caption, image.texts["captions"]))
        if captions and (fault := name_fault(validate_captions(captions), image.picture)):
            return fault
        try:
            picture = split.picture(image.picture)
            content = read_content(picture)
            pixels = read_pixels({"bytes": content, "path": path_of(picture)})
        except RecipeError as error:  # a bad picture, or a path that is not allowed
            return str(error)
        for_captioner, for_filter = (
            resize_pixels(pixels, processor.image_processor)
            for processor in (self.captioner_processor, self.filter_processor)
        )
        return _ReadImage(content, for_captioner, for_filter)

    @torch.inference_mode()
    def _judge_batch(self, batch: Sequence[tuple[StreamedRow, _ReadImage]]) -> list[JudgedImage]:
        written = self._write([read for _, read in batch])
        texts: list[list[tuple[Kind, str]]] = [
            [("web", text) for text in unique_texts(image.texts["captions"])]
            + [("synthetic", text) for text in captions]
            for (image, _), captions in zip(batch, written, strict=True)
        ]
        pixels = self._pixel_values([read.for_filter for _, read in batch], self.filter_processor)
        scores = score_texts(
            self.filter,
            self.filter_processor,
            pixels,
            [[text for _, text in own] for own in texts],
            normalize=self.arguments.normalize_captions,
        )
        threshold = self.arguments.filter_threshold
        return [
            JudgedImage(
                row=image.row,
                image_id=image.image_id,
                name=file_name(image.picture),
                content=read.content,
                texts=[
                    Text(kind, text, score, score >= threshold) for (kind, text), score in zip(own, judged, strict=True)
                ],
            )
            for (image, read), own, judged in zip(batch, texts, scores, strict=True)
        ]

    def _write(self, pictures: Sequence[_ReadImage]) -> list[list[str]]:
        """Write captions for each picture, without duplicates."""
        if self.captioner is None:
            return [[] for _ in pictures]
        captions = sample_captions(
            self.captioner,
            self.captioner_processor.tokenizer,
            self._pixel_values([each.for_captioner for each in pictures], self.captioner_processor),
            [each.content for each in pictures],
            self.prompt,
            self.arguments,
        )
        return [unique_texts(own) for own in captions]

    def _pixel_values(self, pixels: Sequence[torch.Tensor], processor: BlipProcessor) -> torch.Tensor:
        return normalize_pixels(stack_pixels(pixels).to(self.device), processor.image_processor).to(self.dtype)


def load_model(key: str, name: str, model_class: type[StockModel], **load: Any) -> tuple[Any, BlipProcessor, str]:
    """Load a saved BLIP (full or adapter) in evaluation mode, with its processor and its prompt.

    Raises:
        RecipeError: It cannot be loaded, or is of another kind. The message names the recipe's `key`.
    """
    try:
        model, processor, settings = load_finished(name, model_class, **load)
    except RecipeError as error:
        raise RecipeError(str(error).replace("model_name_or_path", key, 1)) from error
    return model, processor, settings.prompt


def check_lengths(arguments: CapFiltArguments, processor: BlipProcessor, prompt: str) -> None:
    """Check that the prompt leaves room for a caption.

    Raises:
        RecipeError: The prompt has `max_length` or more tokens.
    """
    length = len(processor.tokenizer(prompt).input_ids) - 1
    if length >= arguments.max_length:
        raise RecipeError(
            f"max_length is {arguments.max_length}, but the prompt {prompt!r:.60} alone has {length} tokens, which "
            "count too: raise max_length, or shorten the prompt."
        )


def score_texts(
    model: Any, processor: BlipProcessor, pixel_values: torch.Tensor, texts: Sequence[Sequence[str]], *, normalize: bool
) -> list[list[float]]:
    """Compute the probability that each text matches its picture.

    Args:
        model: `BlipForRetrieval` in evaluation mode.
        processor: Its processor.
        pixel_values: `(images, 3, height, width)`, normalised.
        texts: Any number of texts for each image.
        normalize: Whether to clean texts with `normalize_caption`.
    """
    scores: list[list[float]] = [[] for _ in texts]
    images_by_count: defaultdict[int, list[int]] = defaultdict(list)
    for image, own in enumerate(texts):
        images_by_count[len(own)].append(image)
    for count, images in sorted(images_by_count.items()):
        if count:
            flat = [text for image in images for text in texts[image]]
            found = match_probabilities(model, processor, pixel_values[images], flat, normalize=normalize)
            for image, own in zip(images, found.view(-1, count).tolist(), strict=True):
                scores[image] = [round(score, DIGITS) for score in own]
    return scores


def unique_texts(texts: Iterable[str]) -> list[str]:
    """Merge runs of white space in `texts`, and drop duplicates and texts without a word."""
    folded = (" ".join(text.split()) for text in texts)
    return list(dict.fromkeys(text for text in folded if normalize_caption(text)))


def file_name(picture: Any) -> str | None:
    """The file name of a stored picture, without its local folders."""
    path = picture if isinstance(picture, str) else picture.get("path") if isinstance(picture, dict) else None
    return None if path is None else path if "://" in path else PurePosixPath(path).name
