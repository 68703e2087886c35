"""Load a split of any source as rows of `image`, `image_id` and `captions`."""

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
    """Load a split of the recipe's data set.

    Args:
        arguments: The recipe's data keys. `dataset_name` is `shapes`, a Hub id, a directory, or a captions file.
        split: The split, or a sum of splits (`train+restval`).
        max_samples: Load only the first images; with `streaming` from the Hub, the images of that many rows.

    Returns:
        `image`: `{"bytes", "path"}` (`datasets.Image(decode=False)`) for `open_image`. `path` may be a URL.
        `image_id`: the id in the data set (int or str), else the row number.
        `captions`: stripped strings. Single rows are not checked here, but by `check_splits`.

    Raises:
        RecipeError: The data set, split or column does not exist, the split is empty, or paths lead out of their
            folder.
    """
    columns = _read_columns(arguments, split, max_samples)
    rows = join_columns(columns, f"{arguments.dataset_name}, split {split!r},")
    return rows if max_samples is None else rows.select(range(min(max_samples, len(rows))))


def load_splits(arguments: DataArguments, load: Callable[..., Dataset] = load_split) -> dict[str, Dataset]:
    """Load the recipe's splits by role: `train` unless it is streamed, and `eval` and `test` if the recipe names them.

    Args:
        arguments: The recipe's data keys.
        load: The function that loads a split.

    Raises:
        RecipeError: A split cannot be loaded (see `load_split`).
    """
    return {
        role: load(arguments, split, max_samples=max_samples)
        for role, (split, max_samples) in arguments.splits().items()
        if split is not None and not (role == "train" and arguments.is_streamed)
    }


def vocabulary_texts(rows: Dataset, *, normalize: bool, prompt: str = "", drawn: bool = False) -> Iterable[str]:
    """Collect the texts that a tokenizer for `rows` is built from.

    Args:
        rows: Rows with `captions`.
        normalize: Whether to clean captions with `normalize_caption`.
        prompt: The prompt of all captions.
        drawn: Whether to add all words of the drawn scenes.
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
        # `datasets` alone would copy all splits of a directory first.
        return read_directory(arguments, split, max_samples)
    return read_table(arguments, split, max_samples)


def _read_shapes(arguments: CaptionDataArguments, split: str, max_samples: int | None) -> SplitColumns:
    style = arguments.dataset_config_name or SHAPES_STYLES[0]
    if style not in SHAPES_STYLES:
        raise RecipeError(f"dataset_config_name is {style!r}: the styles of {SHAPES!r} are {', '.join(SHAPES_STYLES)}.")
    table = load_shapes(parse_split(split, SHAPES_SPLITS, SHAPES), cast("Style", style), max_samples)
    return SplitColumns(table.select_columns(["image"]), table["captions"][:], None)
