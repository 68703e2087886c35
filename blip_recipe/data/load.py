"""A split of any source, as rows of `image`, `image_id` and `captions`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

from blip_recipe.data.arguments import SHAPES
from blip_recipe.data.captions import normalize_caption
from blip_recipe.data.files import read_captions_file
from blip_recipe.data.rows import SplitColumns, join_columns, parse_split
from blip_recipe.data.shapes import SHAPES_SPLITS, SHAPES_STYLES, Style, load_shapes, shapes_vocabulary
from blip_recipe.data.shards import read_directory
from blip_recipe.data.tables import is_directory, read_table
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from datasets import Dataset

    from blip_recipe.data.arguments import CaptionDataArguments, DataArguments


def load_split(arguments: CaptionDataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
    """A split of the recipe's data set.

    Args:
        arguments: The recipe's data keys. `dataset_name` is `shapes`, a Hub id, a directory, or a captions file.
        split: The split, or a sum of them (`train+restval`).
        max_samples: Only the first images; with `streaming`, the images of as many rows.

    Returns:
        `image`: `{"bytes", "path"}` (`datasets.Image(decode=False)`), where `path` may be a URL; `open_image` opens it.
        `image_id`: the data's own (int or str), else the row number.
        `captions`: as written but stripped. What is wrong with single rows (no caption, no picture) is found by
        `check_splits`.

    Raises:
        RecipeError: There is no such data set, split or column, the split is empty, or paths lead out of their folder.
    """
    columns = _read_columns(arguments, split, max_samples)
    rows = join_columns(columns, f"{arguments.dataset_name}, split {split!r},")
    return rows if max_samples is None else rows.select(range(min(max_samples, len(rows))))


def load_splits(arguments: DataArguments, load: Callable[..., Dataset] = load_split) -> dict[str, Dataset]:
    """The splits of the recipe by role, `train` and, where the recipe names them, `eval` and `test`; not checked yet.

    `train` is left out where it is streamed. Each is read by `load`, in place of `load_split`.

    Raises:
        RecipeError: As `load_split`.
    """
    return {
        role: load(arguments, split, max_samples=max_samples)
        for role, (split, max_samples) in arguments.splits().items()
        if split is not None and not (role == "train" and arguments.is_streamed)
    }


def vocabulary_texts(rows: Dataset, *, normalize: bool, prompt: str = "", drawn: bool = False) -> Iterable[str]:
    """Texts with every word that a tokenizer for `rows` must know.

    Args:
        rows: With `captions`.
        normalize: Whether captions are trained on as `normalize_caption` gives them.
        prompt: Words every caption starts with.
        drawn: Whether all words of drawn scenes are known.
    """
    captions: Iterable[str] = chain.from_iterable(rows["captions"])
    words = shapes_vocabulary() if drawn else []
    return chain(map(normalize_caption, captions) if normalize else captions, [prompt], words)


def _read_columns(arguments: CaptionDataArguments, split: str, max_samples: int | None) -> SplitColumns:
    if arguments.dataset_name == SHAPES:
        return _read_shapes(arguments, split, max_samples)
    file = Path(str(arguments.dataset_name)).expanduser()
    if file.is_file():
        return read_captions_file(arguments, split)
    if arguments.streaming and is_directory(arguments):
        # Of a directory, `datasets` alone would copy all splits first.
        return read_directory(arguments, split, max_samples)
    return read_table(arguments, split, max_samples)


def _read_shapes(arguments: CaptionDataArguments, split: str, max_samples: int | None) -> SplitColumns:
    style = arguments.dataset_config_name or SHAPES_STYLES[0]
    if style not in SHAPES_STYLES:
        raise RecipeError(f"dataset_config_name is {style!r}: the styles of {SHAPES!r} are {', '.join(SHAPES_STYLES)}.")
    table = load_shapes(parse_split(split, SHAPES_SPLITS, SHAPES), cast("Style", style), max_samples)
    return SplitColumns(table.select_columns(["image"]), table["captions"][:], None)
