"""Score how well texts match pictures, or write the embeddings of pictures and texts.

python -m blip_recipe.match outputs/my_retriever dog.jpg cat.jpg "a dog on a beach" "two cats"
python -m blip_recipe.match Salesforce/blip-itm-base-coco photos/ queries.txt --embeddings index.parquet
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_recipe.data.listing import IMAGE_EXTENSIONS, URL, list_images, printable, read_ahead
from blip_recipe.errors import RecipeError, run_command
from blip_recipe.recipe.command_line import add_model_options, check_exported, escape_output, load_options, positive
from blip_recipe.runtime.record import is_exported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blip_recipe.models.matching import Matcher
    from blip_recipe.runtime.matcher import ExportedMatcher

PROG = "python -m blip_recipe.match"


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Load the model, then print matches or write embeddings."""
    escape_output()
    arguments = build_parser(prog).parse_args(argv)
    if arguments.embeddings:
        from blip_recipe.retrieval.embeddings import find_writer

        find_writer(arguments.embeddings)
        if is_exported(arguments.model):
            raise RecipeError(
                f"--embeddings is given, but {arguments.model} is an exported model: name the model that was exported."
            )
        matcher: Any = load_matcher(arguments)
        write_all_embeddings(matcher, arguments)
        return
    pictures, texts = split_inputs(arguments.inputs)
    for row in match_pictures(load_matcher(arguments), pictures, texts):
        print(json.dumps(row, ensure_ascii=False))


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score how well texts match pictures. Print one JSON line for each picture and text, with the "
        "probability of a match (ITM) and the cosine of the embeddings (ITC).",
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="directory or Hub id of a matcher (a BLIP for image-text retrieval), full or LoRA",
    )
    add(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="pictures (files, folders, globs, URLs), then texts; with --embeddings, pictures and .txt files with "
        "one text per line",
    )
    add(
        "--embeddings",
        type=Path,
        metavar="OUT",
        help="write the unit vectors and ids of all inputs to this .parquet, .npz or .safetensors file",
    )
    add("--batch_size", type=positive, default=8, help="pictures in a batch of embeddings (default 8)")
    add_model_options(parser)
    return parser


def split_inputs(inputs: list[str]) -> tuple[list[str], list[str]]:
    """Split the inputs into pictures and texts.

    The first input is a picture. The next ones are too, up to the first that is neither a URL, nor a file or folder
    that exists, nor a name with the extension of a picture.

    Raises:
        RecipeError: There is no text.
    """
    pictures = [inputs[0], *takewhile(looks_like_pictures, inputs[1:])]
    texts = inputs[len(pictures) :]
    if not texts:
        raise RecipeError(
            f"There is {', '.join(map(repr, pictures))} and no text: expected pictures, then texts in quotes."
        )
    return pictures, texts


def looks_like_pictures(name: str) -> bool:
    """Whether an input is a URL, an existing place, or a name with the extension of a picture."""
    return bool(URL.match(name)) or os.path.exists(name) or name.lower().endswith(IMAGE_EXTENSIONS)  # noqa: PTH110


def load_matcher(arguments: argparse.Namespace) -> Matcher | ExportedMatcher:
    """Load the model with the options of the command line.

    Raises:
        RecipeError: The model cannot be loaded, or is not a BLIP for retrieval.
    """
    if check_exported(arguments):
        from blip_recipe.runtime.matcher import ExportedMatcher

        return ExportedMatcher.load(arguments.model)

    from blip_recipe.models.matching import Matcher

    return Matcher.load(arguments.model, **load_options(arguments))


def match_pictures(
    matcher: Matcher | ExportedMatcher, pictures: list[str], texts: list[str]
) -> Iterator[dict[str, Any]]:
    """A row `{"image", "text", "probability", "cosine"}` for each picture and text; name unreadable pictures on stderr.

    Raises:
        RecipeError: No picture can be read.
    """
    encoded: Any = matcher.encode_texts(texts)
    faults: list[Exception] = []
    found = 0
    for name, pixels in read_pictures(matcher, pictures, ahead=4):
        if isinstance(pixels, Exception):
            faults.append(pixels)
            continue
        found += 1
        for text, probability, cosine in zip(texts, *matcher.compare(pixels, encoded), strict=True):
            yield {"image": name, "text": text, "probability": round(probability, 6), "cosine": round(cosine, 6)}
    if not found:
        reason = f" The first: {faults[0]}" if faults else ""
        raise RecipeError(f"There is no picture that could be read: {', '.join(map(repr, pictures))}.{reason}")


def read_pictures(matcher: Matcher | ExportedMatcher, places: list[str], *, ahead: int) -> Iterator[tuple[str, Any]]:
    """Name and `pixel_values` `(1, 3, height, width)` of each picture, or its error, which is said on stderr."""

    def read(name: str) -> Any:
        try:
            return matcher.preprocess(name)
        except Exception as error:  # a file may hold anything: the others go on
            return error

    for name, pixels in read_ahead(read, list_images(places, sys.stdin), ahead=ahead):
        if isinstance(pixels, Exception):
            print(printable(f"left out: {name}: {pixels}"), file=sys.stderr)
        yield name, pixels


def write_all_embeddings(matcher: Matcher, arguments: argparse.Namespace) -> None:
    """Embed the pictures, then the lines of text files, and write them; name unreadable pictures on stderr.

    Raises:
        RecipeError: A text file cannot be read, or nothing can.
    """
    import torch

    from blip_recipe.models.matching import batches
    from blip_recipe.retrieval.embeddings import Embeddings, embed_images, embed_texts, write_embeddings

    model, found = matcher.model, Embeddings()
    text_files = [name for name in arguments.inputs if name.lower().endswith(".txt") and Path(name).is_file()]
    lines = [line for name in text_files for line in read_texts(name)]
    places = [name for name in arguments.inputs if name not in text_files]
    opened = read_pictures(matcher, places, ahead=2 * arguments.batch_size)
    while batch := list(islice(opened, arguments.batch_size)):
        readable = [(name, pixels) for name, pixels in batch if not isinstance(pixels, Exception)]
        if readable:
            pixel_values = torch.cat([pixels for _, pixels in readable]).to(model.device, model.dtype)
            found.add("image", [name for name, _ in readable], [""] * len(readable), embed_images(model, pixel_values))
    for part in batches(lines):
        texts = [text for _, text in part]
        features = embed_texts(model, matcher.processor, texts)
        found.add("text", [name for name, _ in part], texts, features)
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
