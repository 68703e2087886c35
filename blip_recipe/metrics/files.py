"""Read captions and references from files, and format scores as a table."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.scores import ImageId, Scores, check_same_images, name_images, number_of

__all__ = ["check_same_images", "format_table", "read_predictions", "read_references"]

logger = logging.getLogger(__name__)

PREDICTIONS = (
    'a COCO results list [{"image_id": 7, "caption": "…"}, …], one such object per line, or CSV with these columns; '
    '"image" with the path of the picture may stand for "image_id"'
)
REFERENCES = (
    'COCO captions {"images": […], "annotations": [{"image_id": 7, "caption": "…"}, …]}, Karpathy\'s JSON, one object '
    '{"image_id": 7, "references": ["…", …]} per line, or CSV with a caption per line'
)

DELIMITERS = {".csv": ",", ".tsv": "\t"}

NAME_KEYS = ("image", "file_name", "filename")
"""Fields and columns that name the file of a picture."""


def read_predictions(path: Path) -> dict[ImageId, str]:
    """Read the caption of each image from COCO results JSON, JSON lines or CSV (`image_id` or `image`, `caption`).

    Raises:
        RecipeError: The file has another format, or an image occurs twice.
    """
    return read_named_predictions(path)[0]


def read_named_predictions(path: Path) -> tuple[dict[ImageId, str], bool]:
    """Read the captions like `read_predictions`, and whether their keys are file names instead of ids.

    Lines of `caption` with an error instead of a caption are left out, with a warning.
    """
    content = read_rows(path, PREDICTIONS)
    if not isinstance(content, list):
        raise RecipeError(f"{path} holds one JSON object: expected {PREDICTIONS}.")
    rows = [row for row in content if not (isinstance(row, dict) and row.get("error") and not row.get("caption"))]
    if failed := len(content) - len(rows):
        logger.warning("%d of %d pictures in %s have an error instead of a caption.", failed, len(content), path)
    key = key_of(rows)
    pairs = [(image_id_of(row, path, PREDICTIONS, key), text_of(row, path, PREDICTIONS)) for row in rows]
    check_unique((image_id for image_id, _ in pairs), f"in {path}: expected one caption per image")
    return dict(pairs), key in NAME_KEYS


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """Read the references of each image from COCO captions JSON or JSON lines (`image_id`, `references` or `captions`).

    Raises:
        RecipeError: The file has another format, or an image occurs twice.
    """
    return read_named_references(path)[0]


def read_named_references(
    path: Path, *, one_per_row: bool = False
) -> tuple[dict[ImageId, list[str]], dict[ImageId, str]]:
    """Read the references of each image, and the file name of each image that has one.

    Args:
        path: COCO captions JSON, Karpathy's JSON, JSON lines or CSV.
        one_per_row: Whether rows with a single `caption` are references. Not if they may be predictions.

    Raises:
        RecipeError: The file has another format, or an image occurs twice.
    """
    content = read_rows(path, REFERENCES)
    if isinstance(content, dict):
        images = content.get("images")
        first = images[0] if isinstance(images, list) and images else None
        if isinstance(first, dict) and "sentences" in first and "annotations" not in content:
            return references_of_karpathy(content["images"], path)
        return references_of_coco(content, path)
    if not isinstance(content, list):
        raise RecipeError(f"{path} holds {shorten(content)}: expected {REFERENCES}.")
    key = key_of(content)
    rows = [(image_id_of(row, path, REFERENCES, key), row) for row in content]
    names = {image_id: name for image_id, row in rows if (name := name_of(row))}
    if one_per_row and rows and "caption" in rows[0][1] and not {"references", "captions"} & rows[0][1].keys():
        references: dict[ImageId, list[str]] = {}
        for image_id, row in rows:
            references.setdefault(image_id, []).append(text_of(row, path, REFERENCES))
        return references, names
    check_unique((image_id for image_id, _ in rows), f"in {path}: expected one line per image")
    return {image_id: captions_of(row, path) for image_id, row in rows}, names


def references_of_coco(content: dict[str, Any], path: Path) -> tuple[dict[ImageId, list[str]], dict[ImageId, str]]:
    """Group the captions of COCO's `annotations` by image, in the order of `images`."""
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise RecipeError(f"{path} lacks images or annotations: expected {REFERENCES}.")
    ids = [image_id_of(image, path, REFERENCES, key="id") for image in images]
    check_unique(ids, f"among the images of {path}: expected each once")
    references: dict[ImageId, list[str]] = {image_id: [] for image_id in ids}
    unknown = [row for row in annotations if image_id_of(row, path, REFERENCES) not in references]
    if unknown:
        names = name_images(list(dict.fromkeys(row["image_id"] for row in unknown)))
        raise RecipeError(f"{path} has annotations for {names}, but its 'images' do not list them.")
    for row in annotations:
        references[row["image_id"]].append(text_of(row, path, REFERENCES))
    return references, {image["id"]: name for image in images if (name := name_of(image))}


def references_of_karpathy(images: list[Any], path: Path) -> tuple[dict[ImageId, list[str]], dict[ImageId, str]]:
    """Read the sentences of all splits of Karpathy's JSON. Ids are `cocoid`, or else `imgid`."""
    known = set.intersection(*(set(image) if isinstance(image, dict) else set() for image in images))
    key = next((key for key in ("cocoid", "imgid") if key in known), "filename")
    ids = [image_id_of(image, path, REFERENCES, key) for image in images]
    check_unique(ids, f"among the images of {path}: expected each once")
    try:
        references = [[sentence["raw"] for sentence in image["sentences"]] for image in images]
    except (KeyError, TypeError) as error:
        raise RecipeError(
            f"{path} has an image without sentences of 'raw' ({error!r}): expected {REFERENCES}."
        ) from error
    names = {image_id: name for image_id, image in zip(ids, images, strict=True) if (name := name_of(image))}
    return dict(zip(ids, references, strict=True)), names


def read_rows(path: Path, expected: str) -> Any:
    """Read a JSON file, or the list of rows of a JSON lines, CSV or TSV file."""
    text = read_text(path, expected)
    if delimiter := DELIMITERS.get(path.suffix.lower()):
        return read_table(text, delimiter)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise RecipeError(f"{path} is nested too deeply: expected {expected}.") from error
    except ValueError:
        return list(parse_lines(text, path, expected))
    # A file with one line is both JSON and JSON lines.
    return [content] if isinstance(content, dict) and {"image_id", *NAME_KEYS} & content.keys() else content


def read_table(text: str, delimiter: str) -> list[dict[str, Any]]:
    """Read the rows of CSV or TSV. Values are text, but ids that are all numbers become numbers."""
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    ids = {row.get("image_id") or "" for row in rows}
    numbers = {image_id: number_of(image_id) for image_id in ids}
    if None not in numbers.values() and len(set(numbers.values())) == len(ids):
        rows = [row | {"image_id": numbers[row["image_id"]]} for row in rows]
    return rows


def read_text(path: Path, expected: str) -> str:
    """Read a text file that is not empty."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read ({error}): expected {expected}.") from error
    if not text.strip():
        raise RecipeError(f"{path} is empty: expected {expected}.")
    return text


def parse_lines(text: str, path: Path, expected: str) -> Iterator[Any]:
    """Parse each line that is not empty. Lines end only at `\\n`, because captions may contain other separators."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RecipeError(f"line {number} of {path} is not JSON ({error}): expected {expected}.") from error


def key_of(rows: list[Any]) -> str:
    """The field that tells the image of each row: `image_id`, or else one with the name of its file."""
    first = rows[0] if rows and isinstance(rows[0], dict) else {}
    return next((key for key in ("image_id", *NAME_KEYS) if key in first), "image_id")


def name_of(row: Any) -> str | None:
    """The file name of an image, with its folder if the row has it (`filepath` of Karpathy's JSON)."""
    name = next((row[key] for key in NAME_KEYS if isinstance(row.get(key), str)), None)
    folder = row.get("filepath")
    return f"{folder}/{name}" if name and isinstance(folder, str) and folder else name


def image_id_of(row: Any, path: Path, expected: str, key: str = "image_id") -> ImageId:
    """Get the image id of a row, an integer or text."""
    image_id = row.get(key) if isinstance(row, dict) else None
    if not isinstance(image_id, int | str) or isinstance(image_id, bool):
        raise RecipeError(f"{path} has the entry {shorten(row)} without {key}: expected {expected}.")
    return image_id


def text_of(row: dict[str, Any], path: Path, expected: str) -> str:
    """Get the caption of a row."""
    caption = row.get("caption")
    if not isinstance(caption, str):
        raise RecipeError(f"{path} has the entry {shorten(row)} without caption: expected {expected}.")
    return caption


def captions_of(row: dict[str, Any], path: Path) -> list[str]:
    """Get the references of a row of JSON lines."""
    captions = row.get("references", row.get("captions"))
    if not isinstance(captions, list) or not captions or not all(isinstance(each, str) for each in captions):
        raise RecipeError(f"{path} has the entry {shorten(row)} without references: expected {REFERENCES}.")
    return captions


def check_unique(image_ids: Iterable[ImageId], where: str) -> None:
    """Raise a `RecipeError` that names duplicate image ids, if there are any."""
    twice = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
    if twice:
        raise RecipeError(f"{name_images(twice)} {'occurs' if len(twice) == 1 else 'occur'} more than once {where}.")


def shorten(row: Any) -> str:
    """Shorten an entry for an error message."""
    text = json.dumps(row, ensure_ascii=False)
    return text if len(text) <= 120 else text[:120] + "…"


def format_table(scores: Scores) -> str:
    """Format the corpus scores as a table of two columns, with the number of images above it."""
    width = max(map(len, scores.corpus))
    rows = [f"{name:<{width}}  {value:.4f}" for name, value in scores.corpus.items()]
    return "\n".join([f"{len(scores.per_image)} images", *rows])
