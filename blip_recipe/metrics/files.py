"""Read captions and references from files, and format scores as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.scores import ImageId, Scores, check_same_images, name_images

__all__ = ["check_same_images", "format_table", "read_predictions", "read_references"]

PREDICTIONS = 'a COCO results list [{"image_id": 7, "caption": "…"}, …] or one such object per line'
REFERENCES = (
    'COCO captions {"images": […], "annotations": [{"image_id": 7, "caption": "…"}, …]} or one object '
    '{"image_id": 7, "references": ["…", …]} per line'
)


def read_predictions(path: Path) -> dict[ImageId, str]:
    """Read the caption of each image from COCO results JSON or JSON lines (`image_id`, `caption`).

    Raises:
        RecipeError: The file has another format, or an image occurs twice.
    """
    content = read_json_or_lines(path, PREDICTIONS)
    if not isinstance(content, list):
        raise RecipeError(f"{path} holds one JSON object: expected {PREDICTIONS}.")
    pairs = [(image_id_of(row, path, PREDICTIONS), text_of(row, path, PREDICTIONS)) for row in content]
    check_unique((image_id for image_id, _ in pairs), f"in {path}: expected one caption per image")
    return dict(pairs)


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """Read the references of each image from COCO captions JSON or JSON lines (`image_id`, `references` or `captions`).

    Raises:
        RecipeError: The file has another format, or an image occurs twice.
    """
    content = read_json_or_lines(path, REFERENCES)
    if isinstance(content, dict):
        return references_of_coco(content, path)
    if not isinstance(content, list):
        raise RecipeError(f"{path} holds {shorten(content)}: expected {REFERENCES}.")
    rows = [(image_id_of(row, path, REFERENCES), captions_of(row, path)) for row in content]
    check_unique((image_id for image_id, _ in rows), f"in {path}: expected one line per image")
    return dict(rows)


def references_of_coco(content: dict[str, Any], path: Path) -> dict[ImageId, list[str]]:
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
    return references


def read_json_or_lines(path: Path, expected: str) -> Any:
    """Read a JSON file, or the list of objects of a JSON lines file."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read ({error}): expected {expected}.") from error
    if not text.strip():
        raise RecipeError(f"{path} is empty: expected {expected}.")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise RecipeError(f"{path} is nested too deeply: expected {expected}.") from error
    except ValueError:
        return list(parse_lines(text, path, expected))
    # A file with one line is both JSON and JSON lines.
    return [content] if isinstance(content, dict) and "image_id" in content else content


def parse_lines(text: str, path: Path, expected: str) -> Iterator[Any]:
    """Parse each line that is not empty. Lines end only at `\\n`, because captions may contain other separators."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RecipeError(f"line {number} of {path} is not JSON ({error}): expected {expected}.") from error


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
