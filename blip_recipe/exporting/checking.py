"""Compare an exported model with the model in torch, on pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blip_recipe.data.images import open_image
from blip_recipe.data.shapes import draw_scene, make_scenes
from blip_recipe.models.captioner import generate_token_ids
from blip_recipe.models.decoding import decoding_arguments
from blip_recipe.models.matching import match_probabilities
from blip_recipe.models.text import decode_texts
from blip_recipe.runtime.answerer import ExportedAnswerer
from blip_recipe.runtime.captioner import ExportedCaptioner
from blip_recipe.runtime.matcher import ExportedMatcher
from blip_recipe.vqa.collator import encode_questions

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from blip_recipe.exporting.kinds import Source

PICTURES = 8
"""Number of drawn scenes, if no pictures are given."""

BATCH = 8
"""Pictures in a batch."""

SEARCHES: dict[str, dict[str, Any]] = {"greedy": {"num_beams": 1}, "beams": {"num_beams": 3}}
"""The decoding of each comparison of token ids."""

QUESTIONS = ("what is in the picture?", "how many things are there?", "what colour is it?", "is there a red circle?")
TEXTS = ("a red square on a blue ground", "two small green circles", "a photograph of a dog", "a man")
"""Questions and texts that are compared for each picture."""

Results = dict[str, float]
"""What a comparison found: shares from 0 to 1, and largest differences."""


def compare(source: Source, folder: Path, pictures: Sequence[str | Path] = ()) -> Results:
    """Compare an exported folder with its source on pictures, or on drawn scenes.

    Returns:
        For captioners and answerers, `greedy` and `beams`: the shares of equal token ids on equal pixels; `texts`: the
        share of equal texts with the decoding of the model and the runner's own pixels; `difference`: the largest
        difference of the probabilities of the first token. For matchers, `difference` is that of the probabilities
        and cosines on equal pixels, `texts` the share of probabilities within 0.01 with the runner's own pixels.
        `pixels` is the largest difference of pixels, as a part of their range.

    Raises:
        BadImageError: A picture cannot be read.
    """
    scenes = [draw_scene(scene) for scene in make_scenes("test")[:PICTURES]]
    images = [open_image(picture) for picture in pictures] or scenes
    batches = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
    parts = [COMPARISONS[source.kind.task](source, folder, batch) for batch in batches]
    sizes = [len(batch) for batch in batches]
    found = {
        name: max(part[name] for part in parts)
        if name in ("difference", "pixels")
        else sum(part[name] * size for part, size in zip(parts, sizes, strict=True)) / len(images)
        for name in parts[0]
    }
    return {"pictures": len(images), **found}


@torch.no_grad()
def _compare_captions(source: Source, folder: Path, images: Sequence[Image.Image]) -> Results:
    model, tokenizer, prompt = source.model, source.processor.tokenizer, source.settings.prompt
    exported = ExportedCaptioner.load(folder)
    pixels, own_pixels, found = _read_pixels(source, exported.folder.pixels.read, images)
    for name, search in SEARCHES.items():
        expected = generate_token_ids(model, tokenizer, pixels, prompt, **decoding_arguments(source.settings, search))
        token_ids, _ = exported.generate(pixels.numpy(), **search)
        found[name] = equal_share(expected, token_ids[:, 0], exported.folder.record["tokens"]["end"])
    usual = generate_token_ids(model, tokenizer, pixels, prompt, **decoding_arguments(source.settings, {}))
    texts, _ = exported.caption_pixels([own_pixels])
    found["texts"] = _mean(a == b[0] for a, b in zip(decode_texts(tokenizer, usual), texts, strict=True))
    prompt_ids = torch.tensor([exported.prompt_ids_of(None)] * len(images))
    expected = model(pixel_values=pixels, input_ids=prompt_ids).logits[:, -1].softmax(-1)
    logits = exported.decoder_for(exported.encode(pixels.numpy())).read(prompt_ids.numpy()[:, None])
    return found | {"difference": _difference(expected, torch.from_numpy(logits[:, 0]).softmax(-1))}


@torch.no_grad()
def _compare_answers(source: Source, folder: Path, images: Sequence[Image.Image]) -> Results:
    model, tokenizer = source.model, source.processor.tokenizer
    exported = ExportedAnswerer.load(folder)
    pixels, own_pixels, found = _read_pixels(source, exported.folder.pixels.read, images)
    inputs = encode_questions(tokenizer, list(QUESTIONS) * len(images))
    embeds = model.vision_model(pixel_values=pixels).last_hidden_state.repeat_interleave(len(QUESTIONS), 0)
    states = model.encode_questions(embeds, **inputs)
    encoded = exported.encode(pixels.numpy(), [QUESTIONS] * len(images))
    searches: dict[str, dict[str, Any]] = {"texts": {}} | SEARCHES
    for name, search in searches.items():
        arguments = decoding_arguments(source.settings, search)
        expected = model.generate(**inputs, question_states=states, **arguments)[:, 1:]
        if name == "texts":
            own = exported.encode(own_pixels, [QUESTIONS] * len(images))
            answers = [exported.folder.texts.decode(each[0]) for each in exported.generate(own)]
            found[name] = _mean(a == b for a, b in zip(decode_texts(tokenizer, expected), answers, strict=True))
        else:
            token_ids = ExportedAnswerer(**exported.__dict__ | {"given": search}).generate(encoded)
            found[name] = equal_share(expected, token_ids[:, 0], exported.folder.record["tokens"]["end"])
    start = torch.full((len(states), 1), exported.folder.record["tokens"]["start"])
    first = model.text_decoder(
        input_ids=start, encoder_hidden_states=states, encoder_attention_mask=inputs["attention_mask"]
    )
    logits = exported.decoder_for(encoded).read(start.numpy()[:, None])
    difference = _difference(first.logits[:, -1].softmax(-1), torch.from_numpy(logits[:, 0]).softmax(-1))
    return found | {"difference": difference}


@torch.no_grad()
def _compare_matches(source: Source, folder: Path, images: Sequence[Image.Image]) -> Results:
    exported = ExportedMatcher.load(folder)
    pixels, own_pixels, found = _read_pixels(source, exported.folder.pixels.read, images)
    texts = [TEXTS] * len(images)
    flat = [text for own in texts for text in own]
    expected = match_probabilities(source.model, source.processor, pixels, flat).view(len(images), -1)
    matches = torch.tensor(exported.match([pixels.numpy()], texts))
    features = source.model.image_features(source.model.encode_images(pixels))
    found["difference"] = max(
        _difference(expected, matches),
        _difference(features, torch.from_numpy(exported.image_features(pixels.numpy()))),
    )
    own = torch.tensor(exported.match([own_pixels], texts))
    return found | {"texts": _mean(((own - expected).abs() < 0.01).flatten().tolist())}


def _read_pixels(
    source: Source, read: Callable[[Image.Image], np.ndarray], images: Sequence[Image.Image]
) -> tuple[torch.Tensor, np.ndarray, Results]:
    """The pixels of the processor, those of the runner, and their largest difference as a part of their range."""
    processor = source.processor.image_processor
    pixels = processor(list(images), return_tensors="pt").pixel_values
    own = np.concatenate([read(image) for image in images])
    std = np.array(processor.image_std, dtype=np.float32)[:, None, None]
    return pixels, own, {"pixels": float((np.abs(pixels.numpy() - own) * std).max())}


def equal_share(expected: torch.Tensor, found: np.ndarray, end: int) -> float:
    """The share of rows of token ids that are equal up to their ends."""
    pairs = zip(expected.tolist(), found.tolist(), strict=True)
    return _mean(_until_end(a, end) == _until_end(b, end) for a, b in pairs)


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


COMPARISONS: dict[str, Callable[[Source, Path, Sequence[Image.Image]], Results]] = {
    "captioning": _compare_captions,
    "vqa": _compare_answers,
    "retrieval": _compare_matches,
}
"""The comparison of each task."""
