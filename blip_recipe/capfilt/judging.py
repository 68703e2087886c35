"""Captioner and filter: pictures with their texts become pictures with judged texts, found and written."""

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
from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.checks import validate_captions
from blip_recipe.data.images import read_content
from blip_recipe.data.listing import read_ahead
from blip_recipe.data.pixels import normalize_pixels, read_pixels, resize_pixels, stack_pixels
from blip_recipe.errors import RecipeError
from blip_recipe.models.loading import load_finished
from blip_recipe.retrieval.modeling import BlipForRetrieval
from blip_recipe.retrieval.scoring import match_probabilities

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import BlipProcessor

    from blip_recipe.capfilt.arguments import CapFiltArguments
    from blip_recipe.data.shards import ShardedSplit, StreamedImage
    from blip_recipe.models.stock import StockModel

Kind = Literal["web", "synthetic"]
KINDS: tuple[Kind, ...] = ("web", "synthetic")
"""Texts that were found with a picture, and those that the captioner wrote."""

DIGITS = 6
"""Decimals that scores are kept with, and compared with the threshold."""


class Text(NamedTuple):
    """A judged text: its kind, the text itself, its probability of matching and whether it is kept."""

    kind: Kind
    text: str
    score: float
    kept: bool


@dataclass(frozen=True)
class JudgedImage:
    """A picture with its judged texts.

    Attributes:
        row: Its place in the shard.
        image_id: The data's own, if there is one.
        name: What its file is called in the source, if it is known.
        content: Its file.
        texts: Found ones first.
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
    """A picture that cannot be used: its place in the shard and what is wrong with it."""

    row: int
    fault: str


@dataclass(frozen=True)
class _ReadImage:
    """A picture as it is stored, and its pixels in the sizes of captioner and filter."""

    content: bytes
    for_captioner: torch.Tensor
    for_filter: torch.Tensor


class Judge:
    """A captioner, unless nothing is to be written, and a filter, on the device of this process."""

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

    def judge(self, split: ShardedSplit, images: Iterable[StreamedImage]) -> Iterator[JudgedImage | BadImage]:
        """The images of a shard in their order, judged; pictures are opened while others are captioned."""
        opened = read_ahead(partial(self._read, split), images, ahead=2 * self.arguments.batch_size)
        while batch := list(islice(opened, self.arguments.batch_size)):
            good = [(image, read) for image, read in batch if isinstance(read, _ReadImage)]
            judged = iter(self._judge_batch(good) if good else ())
            for image, read in batch:
                yield next(judged) if isinstance(read, _ReadImage) else BadImage(image.row, read)

    def _read(self, split: ShardedSplit, image: StreamedImage) -> _ReadImage | str:
        """A picture and its pixels, or what is wrong with it."""
        # An image without a text is welcome: one will be written.
        if image.captions and (fault := validate_captions(image.captions)):
            return fault
        try:
            content = read_content(split.picture(image.picture))
            pixels = read_pixels(content)
        except RecipeError as error:  # of a picture, or of a path that leads where it may not
            return str(error)
        for_captioner, for_filter = (
            resize_pixels(pixels, processor.image_processor)
            for processor in (self.captioner_processor, self.filter_processor)
        )
        return _ReadImage(content, for_captioner, for_filter)

    @torch.inference_mode()
    def _judge_batch(self, batch: Sequence[tuple[StreamedImage, _ReadImage]]) -> list[JudgedImage]:
        written = self._write([read for _, read in batch])
        texts: list[list[tuple[Kind, str]]] = [
            [("web", text) for text in unique_texts(image.captions)] + [("synthetic", text) for text in captions]
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
        """The captions of each picture, none of them twice."""
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
    """A saved BLIP, full or adapter, in evaluation mode, with its processor and the prompt it was scored with.

    Raises:
        RecipeError: It cannot be loaded, or is of another kind; names the recipe's `key`.
    """
    try:
        model, processor, settings = load_finished(name, model_class, **load)
    except RecipeError as error:
        raise RecipeError(str(error).replace("model_name_or_path", key, 1)) from error
    return model, processor, settings.prompt


def check_lengths(arguments: CapFiltArguments, processor: BlipProcessor, prompt: str) -> None:
    """Find a prompt that leaves a caption no room.

    Raises:
        RecipeError: It is as long as `max_length`.
    """
    length = len(processor.tokenizer(prompt).input_ids) - 1
    if length >= arguments.max_length:
        raise RecipeError(
            f"max_length is {arguments.max_length}, but the prompt {prompt!r:.60} alone is {length} tokens, which "
            "count: raise it, or shorten the prompt."
        )


def score_texts(
    model: Any, processor: BlipProcessor, pixel_values: torch.Tensor, texts: Sequence[Sequence[str]], *, normalize: bool
) -> list[list[float]]:
    """The probability that each text belongs to its picture, of any number of texts each.

    Args:
        model: `BlipForRetrieval` in evaluation mode.
        processor: Its processor.
        pixel_values: `(images, 3, height, width)`, normalised.
        texts: Those of each image.
        normalize: Whether texts are cleaned as BLIP's authors do.
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
    """`texts` with runs of white space folded, none of them twice, without those that have no word."""
    folded = (" ".join(text.split()) for text in texts)
    return list(dict.fromkeys(text for text in folded if normalize_caption(text)))


def file_name(picture: Any) -> str | None:
    """What the file of a stored picture is called, without its folders, which are nobody's business."""
    path = picture if isinstance(picture, str) else picture.get("path") if isinstance(picture, dict) else None
    return None if path is None else path if "://" in path else PurePosixPath(path).name
