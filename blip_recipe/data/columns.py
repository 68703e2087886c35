"""Which columns of a table hold pictures, captions and ids: as the recipe says, else by known names."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from datasets import Features, Image, LargeList, List, Value

from blip_recipe.data.captions import TEXT_KEYS
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable

IMAGE_NAMES = (
    "image",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_path",
    "image_url",
    "url",
    "coco_url",
    "file_name",
    "filename",
    "filepath",
)
"""Columns of pictures, paths or URLs in the order in which they are preferred."""

CAPTION_NAMES = (
    "caption",
    "captions",
    "text",
    "texts",
    "txt",
    "sentence",
    "sentences",
    "raw",
    "en",
    "alt_text",
    "description",
    "annotations_captions",
)
"""Columns of captions, and stems of numbered ones (`caption_0`, `caption_1`, …)."""

_NUMBERED = re.compile(rf"({'|'.join(CAPTION_NAMES)})_?(\d+)")


SET_KEY = "set {key} to one of {columns}"
"""What to do where a column is not known, in a recipe."""


def choose_image_column(features: Features, asked: str | None, where: str, advice: str = SET_KEY) -> str:
    """The column of pictures; `advice` says what to do where none is known.

    Raises:
        RecipeError: It is missing, or none or several could be it.
    """
    if asked is not None:
        check_column(features, asked, "image_column", where)
        return asked
    pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
    named = [name for name in IMAGE_NAMES if name in (pictures or features)]
    if len(pictures) > 1 and not named:
        several = ", ".join(pictures)
        raise RecipeError(f"{where} has several columns of pictures ({several}): {_advise(advice, 'image', pictures)}.")
    found = named or pictures
    if not found:
        raise RecipeError(f"{where} has no known column of pictures: {_advise(advice, 'image', features)}.")
    return found[0]


def choose_caption_columns(features: Features, asked: list[str] | None, where: str, advice: str = SET_KEY) -> list[str]:
    """The column or columns of captions; `advice` says what to do where none is known.

    Raises:
        RecipeError: One is missing or holds no text, or none or several could be it.
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
    """Make sure that the column which the recipe's `key` names is there.

    Raises:
        RecipeError: It is not; names those that are.
    """
    if name not in columns:
        raise RecipeError(f"{where} has no column {name!r}, which {key} names: its columns are {_list(columns)}.")


def _known_caption_columns(features: Features) -> list[list[str]]:
    """Columns of known names that hold text; numbered ones of one stem belong together."""
    text = [name for name, feature in features.items() if _holds_text(feature)]
    numbered: defaultdict[str, list[str]] = defaultdict(list)
    for name in text:
        if match := _NUMBERED.fullmatch(name):
            numbered[match[1]].append(name)
    families = [sorted(names, key=_number) for names in numbered.values()]
    return [[name] for name in text if name in CAPTION_NAMES] + families


def _number(name: str) -> int:
    return int(re.findall(r"\d+$", name)[0])


def _holds_text(feature: Any) -> bool:
    """Whether `read_captions` can read cells of this type."""
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
