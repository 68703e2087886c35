"""Score how well texts match a picture, or write the embeddings of pictures and texts.

python -m blip_recipe.match outputs/my_retriever dog.jpg "a dog on a beach" "two cats"
python -m blip_recipe.match Salesforce/blip-itm-base-coco photos/ queries.txt --embeddings index.parquet
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blip_recipe.data.listing import list_images, printable, read_ahead
from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.command_line import add_model_options, escape_output, load_options, positive

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import BlipProcessor

    from blip_recipe.retrieval.modeling import BlipForRetrieval

Item = TypeVar("Item")

PROG = "python -m blip_recipe.match"

TEXTS_AT_A_TIME = 256
"""Texts in a batch."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Load the model, then print matches or write embeddings."""
    escape_output()
    arguments = build_parser(prog).parse_args(argv)
    if arguments.embeddings is None and len(arguments.inputs) < 2:
        raise RecipeError(f"There is {arguments.inputs[0]!r} and no text: expected a picture, then texts in quotes.")
    if arguments.embeddings:
        from blip_recipe.retrieval.embeddings import find_writer

        find_writer(arguments.embeddings)
    model, processor = load_matcher(arguments)
    if arguments.embeddings:
        write_all_embeddings(model, processor, arguments)
        return
    image, *texts = arguments.inputs
    for row in match_texts(model, processor, image, texts):
        print(json.dumps(row, ensure_ascii=False))


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score how well texts match a picture: one JSON line for each, with the probability of a match "
        "(ITM) and the cosine of the embeddings (ITC).",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory or Hub id of a BLIP for image-text retrieval, full or LoRA")
    add(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="a picture (file or URL) and texts; with --embeddings, pictures, folders, globs, URLs, and .txt files of "
        "one text a line",
    )
    add(
        "--embeddings",
        type=Path,
        metavar="OUT",
        help="write the unit vectors and ids of all inputs to this .parquet, .npz or .safetensors file",
    )
    add("--batch_size", type=positive, default=8, help="pictures in a batch (default 8)")
    add_model_options(parser)
    return parser


def load_matcher(arguments: argparse.Namespace) -> tuple[BlipForRetrieval, BlipProcessor]:
    """Load the model and its processor.

    Raises:
        RecipeError: The model cannot be loaded, or is not a BLIP for retrieval.
    """
    from blip_recipe.models.loading import load_finished
    from blip_recipe.models.pipeline import first_device, usable_device
    from blip_recipe.retrieval.modeling import BlipForRetrieval

    options = load_options(arguments)
    options["device"] = usable_device(arguments.device or first_device())
    model, processor, _ = load_finished(arguments.model, BlipForRetrieval, **options)
    return model, processor


def match_texts(
    model: BlipForRetrieval, processor: BlipProcessor, image: str, texts: list[str]
) -> Iterator[dict[str, Any]]:
    """A row `{"image", "text", "probability", "cosine"}` for each text.

    Raises:
        RecipeError: The picture cannot be read.
    """
    import torch

    from blip_recipe.retrieval.losses import MATCHING
    from blip_recipe.retrieval.scoring import tokenize_texts

    pixels = read_picture(processor, image)
    if isinstance(pixels, Exception):
        raise RecipeError(f"{image!r} cannot be read as a picture: {pixels}")
    with torch.no_grad():
        embeds = model.encode_images(pixels.to(model.device, model.dtype))
        features = model.image_features(embeds)
        for part in batches(texts):
            tokens = tokenize_texts(processor.tokenizer, part)
            tokens = {name: values.to(model.device) for name, values in tokens.items()}
            matches = model.match_logits(embeds, **tokens).float().softmax(1)[:, MATCHING]
            cosines = (model.text_features(**tokens) @ features[0]).float()
            for text, probability, cosine in zip(part, matches.tolist(), cosines.tolist(), strict=True):
                yield {"image": image, "text": text, "probability": round(probability, 6), "cosine": round(cosine, 6)}


def batches(items: list[Item]) -> Iterator[list[Item]]:
    """Lists of up to `TEXTS_AT_A_TIME` items."""
    return (items[start : start + TEXTS_AT_A_TIME] for start in range(0, len(items), TEXTS_AT_A_TIME))


def read_picture(processor: BlipProcessor, name: str) -> torch.Tensor | Exception:
    """`pixel_values` `(1, 3, height, width)` of a file or URL, or the error of reading it."""
    from blip_recipe.data.images import open_image

    try:
        return processor.image_processor(open_image(name), return_tensors="pt").pixel_values
    except Exception as error:  # a file may hold anything: the caller reports the error
        return error


def write_all_embeddings(model: BlipForRetrieval, processor: BlipProcessor, arguments: argparse.Namespace) -> None:
    """Embed the pictures, then the lines of text files, and write them; name unreadable pictures on stderr.

    Raises:
        RecipeError: A text file cannot be read, or nothing can.
    """
    import torch

    from blip_recipe.retrieval.embeddings import Embeddings, embed_images, embed_texts, write_embeddings

    found = Embeddings()
    text_files = [name for name in arguments.inputs if name.lower().endswith(".txt") and Path(name).is_file()]
    lines = [line for name in text_files for line in read_texts(name)]
    names = list_images([name for name in arguments.inputs if name not in text_files], sys.stdin)
    opened = read_ahead(lambda name: read_picture(processor, name), names, ahead=2 * arguments.batch_size)
    while batch := list(islice(opened, arguments.batch_size)):
        readable = [(name, pixels) for name, pixels in batch if not isinstance(pixels, Exception)]
        for name, pixels in batch:
            if isinstance(pixels, Exception):
                print(printable(f"left out: {name}: {pixels}"), file=sys.stderr)
        if readable:
            pixel_values = torch.cat([pixels for _, pixels in readable]).to(model.device, model.dtype)
            found.add("image", [name for name, _ in readable], [""] * len(readable), embed_images(model, pixel_values))
    for part in batches(lines):
        texts = [text for _, text in part]
        found.add("text", [name for name, _ in part], texts, embed_texts(model, processor, texts))
    write_embeddings(arguments.embeddings, found)
    print(
        f"{found.kinds.count('image'):,} images and {found.kinds.count('text'):,} texts are in {arguments.embeddings}."
    )


def read_texts(name: str) -> list[tuple[str, str]]:
    """The lines of a file that are not empty, as `(FILE:LINE, text)`.

    Raises:
        RecipeError: The file is not UTF-8 text.
    """
    try:
        lines = Path(name).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name} cannot be read: {error}. Expected UTF-8 with one text a line.") from error
    return [(f"{name}:{number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


if __name__ == "__main__":
    run_command(main)
