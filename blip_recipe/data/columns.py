"""Find the columns of pictures, captions and ids: those of the recipe, else by well-known names."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, Features, Image, LargeList, List, Value

from blip_recipe.data.captions import TEXT_KEYS
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable

IMAGE_NAMES = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "image_path", "img_path", "image_file", "image_name"),
    *(
        "image_filename",
        "image_url",
        "url",
        "coco_url",
        "file_name",
        "filename",
        "filepath",
        "file_path",
        "file",
        "path",
    ),
)
"""Well-known columns of pictures, paths or URLs, the preferred ones first."""

CAPTION_NAMES = (
    *("caption", "captions", "text", "texts", "txt", "sentence", "sentences", "raw", "en", "alt_text"),
    *("description", "annotations_captions"),
)
"""Well-known columns of captions, also numbered (`caption_0`, `caption_1`, …)."""

_NUMBERED = re.compile(rf"({'|'.join(CAPTION_NAMES)})_?(\d+)")
_SEPARATORS = re.compile(r"[\s-]+")


def plain_name(name: str) -> str:
    """The name of a column as in the lists of well-known names: `Image Name` is `image_name`."""
    return _SEPARATORS.sub("_", name.strip().lower())


def is_caption(name: str) -> bool:
    """Whether a column has a well-known name of captions."""
    return plain_name(name) in CAPTION_NAMES or bool(_NUMBERED.fullmatch(plain_name(name)))


SET_KEY = "set {key} to one of {columns}"
"""Advice for a recipe whose data set has no known column."""


def choose_image_column(features: Features, asked: str | None, where: str, advice: str = SET_KEY) -> str:
    """Choose the column of pictures.

    Args:
        features: The columns of the data set.
        asked: The column that the recipe names, if any.
        where: Name of the data set in error messages.
        advice: What to do, for the error message.

    Raises:
        RecipeError: The column is missing, unknown or ambiguous.
    """
    if asked is not None:
        check_column(features, asked, "image_column", where)
        return asked
    pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
    known = {plain_name(name): name for name in reversed(pictures or list(features))}
    named = [known[name] for name in IMAGE_NAMES if name in known]
    if len(pictures) > 1 and not named:
        several = ", ".join(pictures)
        raise RecipeError(f"{where} has several columns of pictures ({several}): {_advise(advice, 'image', pictures)}.")
    found = named or pictures
    if not found:
        raise RecipeError(f"{where} has no known column of pictures: {_advise(advice, 'image', features)}.")
    return found[0]


def choose_caption_columns(features: Features, asked: list[str] | None, where: str, advice: str = SET_KEY) -> list[str]:
    """Choose the column or columns of captions. The arguments are those of `choose_image_column`.

    Raises:
        RecipeError: A column is missing, unknown, ambiguous or holds no text.
    """
    if asked is not None:
        for name in asked:
            check_column(features, name, "caption_column", where)
            if not _holds_text(features[name]):
                raise RecipeError(
                    f"{where} caption_column {name!r} holds {features[name]}: expected text, a list of texts, or "
                    f"structs with {', '.join(TEXT_KEYS)}."
                )
        return asked
    found = _known_caption_columns(features)
    if not found:
        raise RecipeError(f"{where} has no known column of captions: {_advise(advice, 'caption', features)}.")
    if len(found) > 1:
        names = [name for family in found for name in family]
        raise RecipeError(
            f"{where} has several columns that could be captions ({_list(names)}): {_advise(advice, 'caption', names)}."
        )
    return found[0]


def check_column(columns: Iterable[str], name: str, key: str, where: str) -> None:
    """Check that the column named by the recipe's `key` exists.

    Raises:
        RecipeError: It does not. The message lists the existing columns.
    """
    if name not in columns:
        raise RecipeError(f"{where} has no column {name!r}, which {key} names: its columns are {_list(columns)}.")


def check_text_column(features: Features, name: str, column: str, where: str) -> None:
    """Check that a column of prompts or groups exists and holds text; groups may also be integers or class labels.

    Args:
        features: All columns.
        name: `prompt` or `group`, the key without `_column`.
        column: The column that the key names.
        where: Name of the data set in error messages.

    Raises:
        RecipeError: It does not exist, or holds something else.
    """
    check_column(features, column, f"{name}_column", where)
    feature = features[column]
    is_text = isinstance(feature, Value) and "string" in feature.dtype
    is_label = isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype)
    if not (is_text or (name == "group" and is_label)):
        expected = "text, integers or class labels" if name == "group" else "text"
        raise RecipeError(f"{where} {name}_column {column!r} holds {feature}: expected {expected}.")


def read_text(cell: Any, feature: Any) -> str:
    """A cell of a column of prompts or groups, stripped at its end; an empty cell is an empty text."""
    if cell is None:
        return ""
    return (feature.int2str(cell) if isinstance(feature, ClassLabel) else str(cell)).rstrip()


def _known_caption_columns(features: Features) -> list[list[str]]:
    """Well-known columns that hold text. Numbered columns such as `caption_0` and `caption_1` form one group."""
    text = [name for name, feature in features.items() if _holds_text(feature)]
    numbered: defaultdict[str, list[str]] = defaultdict(list)
    for name in text:
        if match := _NUMBERED.fullmatch(plain_name(name)):
            numbered[match[1]].append(name)
    families = [sorted(names, key=_number) for names in numbered.values()]
    return [[name] for name in text if plain_name(name) in CAPTION_NAMES] + families


def _number(name: str) -> int:
    return int(re.findall(r"\d+$", name)[0])


def _holds_text(feature: Any) -> bool:
    """Whether `read_captions` can read this type."""
    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string", "string_view")
    if isinstance(feature, (List, LargeList)):
        return _holds_text(feature.feature)
    if isinstance(feature, dict):
        return any(_holds_text(feature[key]) for key in TEXT_KEYS if key in feature)
    return False


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _advise(advice: str, name: str, columns: Iterable[str]) -> str:
    return advice.format(key=f"{name}_column", name=name, columns=_list(columns))
