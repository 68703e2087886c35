"""Load a split of any source as rows of `image`, `image_id` and `captions`."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, cast

from datasets import concatenate_datasets

from blip_recipe.data.arguments import SHAPES
from blip_recipe.data.captions import MAX_WORDS, normalize_caption
from blip_recipe.data.holdout import divide
from blip_recipe.data.layouts import SHARDS
from blip_recipe.data.mixture import number_rows
from blip_recipe.data.rows import (
    PROMPT,
    SplitColumns,
    has_prompts,
    images_from_paths,
    iterate_column,
    join_columns,
    parse_split,
)
from blip_recipe.data.shapes import (
    SHAPES_SPLITS,
    SHAPES_STYLES,
    Style,
    describe_scene,
    make_scenes,
    name_scene,
    shapes_vocabulary,
)
from blip_recipe.data.shards import fetch_role, open_stream, read_directory
from blip_recipe.data.tables import is_directory, kind_of_folder, read_table
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from datasets import Dataset

    from blip_recipe.data.arguments import CaptionDataArguments, DataArguments
    from blip_recipe.data.shards import OpenSplit


def load_split(arguments: CaptionDataArguments, split: str, *, max_samples: int | None = None) -> Dataset:
    """Load a split of the recipe's data set.

    Args:
        arguments: The recipe's data keys. `dataset_name` is `shapes`, a Hub id, a folder, or a file.
        split: The split, a slice (`train[:90%]`), or a sum of these (`train+restval`).
        max_samples: Load only the first images; with `streaming` from the Hub, the images of that many rows.

    Returns:
        `image`: `{"bytes", "path"}` (`datasets.Image(decode=False)`) for `open_image`. `path` may be a URL.
        `image_id`: the id in the data set (int or str), else the row number.
        `captions`: stripped strings. Single rows are not checked here, but by `check_splits`.
        `prompt`: with `prompt_column`, the text that the image's captions start with.
        `group`: with `group_column`, the group that the image is scored with.

    Raises:
        RecipeError: The data set, split or column does not exist, the split is empty, or paths lead out of their
            folder.
    """
    if is_read_by_shards(arguments):
        return read_directory(arguments, split, max_samples)
    shapes = arguments.dataset_name == SHAPES
    columns = (_read_shapes if shapes else read_table)(arguments, split, max_samples)
    return keep_first(join_columns(columns, f"{arguments.dataset_name}, split {split!r},"), max_samples)


def is_read_by_shards(arguments: DataArguments) -> bool:
    """Whether the splits of a streamed directory are read by shards: `datasets` alone would copy all of them first."""
    return arguments.streaming and is_directory(arguments) and kind_of_folder(arguments) == SHARDS


def load_splits(
    arguments: DataArguments, load: Callable[..., Dataset] = load_split, open_split: OpenSplit = open_stream
) -> dict[str, Dataset]:
    """Load the recipe's splits by role: `train` unless it is streamed, and `eval` and `test` if the recipe names them.

    Args:
        arguments: The recipe's data keys.
        load: The function that loads a split.
        open_split: The function that opens the training split as a stream.

    Raises:
        RecipeError: A split cannot be loaded (see `load_split`).
    """
    if arguments.mixture:
        scored = [role for role in ("eval", "test") if arguments.has_split(role)]
        train = load_mixture(cast("CaptionDataArguments", arguments), load)
        return {"train": train} | {role: load_role(arguments, role, load, open_split) for role in scored}
    roles = [role for role in ("train", "eval", "test") if arguments.has_split(role)]
    if arguments.is_streamed:
        roles.remove("train")
    divided = _divide_training_split(arguments, load)
    return {role: load_role(arguments, role, load, open_split, divided) for role in roles}


def load_mixture(arguments: CaptionDataArguments, load: Callable[..., Dataset] = load_split) -> Dataset:
    """Load the training rows of all data sets of a mixture, one after the other, with ids by `number_rows`.

    Raises:
        RecipeError: A data set cannot be loaded (see `load_split`).
    """
    loaded = []
    for number, part in enumerate(arguments.mixture):
        own = arguments.arguments_of(part)
        loaded.append(number_rows(load(own, own.train_split, max_samples=own.max_train_samples), number))
    return concatenate_datasets(loaded)


def load_role(
    arguments: DataArguments,
    role: str,
    load: Callable[..., Dataset],
    open_split: OpenSplit = open_stream,
    divided: Mapping[str, Dataset] | None = None,
) -> Dataset:
    """Load the images of a role: those of its split, or those that are held out of the training split.

    Args:
        arguments: The recipe's data keys.
        role: `train`, `eval` or `test`.
        load: The function that loads a split.
        open_split: The function that opens the training split as a stream.
        divided: The training split by role, if it is loaded already.

    Raises:
        RecipeError: The split cannot be loaded, or no image is held out.
    """
    name, limit = arguments.splits()[role]
    divided = _divide_training_split(arguments, load) if divided is None else divided
    if role in divided:
        return keep_first(divided[role], limit)
    if role in arguments.held_out():
        return fetch_role(arguments, role, limit, open_split)
    return load(arguments, name, max_samples=limit)


def _divide_training_split(arguments: DataArguments, load: Callable[..., Dataset]) -> dict[str, Dataset]:
    """The training split by role, if images are held out of it; a stream is not loaded."""
    if arguments.is_streamed or not arguments.held_out():
        return {}
    return divide(load(arguments, arguments.train_split), arguments)


def keep_first(rows: Dataset, count: int | None) -> Dataset:
    """The first `count` rows; None keeps all."""
    return rows if count is None else rows.select(range(min(count, len(rows))))


def vocabulary_texts(
    rows: Dataset, *, normalize: bool, max_words: int | None = MAX_WORDS, prompt: str = "", drawn: bool = False
) -> Iterable[str]:
    """Collect the texts that a tokenizer for `rows` is built from.

    Args:
        rows: Rows with `captions`.
        normalize: Whether to clean captions with `normalize_caption`.
        max_words: The number of words that cleaning keeps; None for all.
        prompt: The prompt of all captions. Rows may have prompts of their own.
        drawn: Whether to add all words of the drawn scenes.
    """
    captions: Iterable[str] = chain.from_iterable(iterate_column(rows, "captions"))
    words = shapes_vocabulary() if drawn else []
    cleaned = (normalize_caption(caption, max_words) for caption in captions) if normalize else captions
    prompts = dict.fromkeys(rows[PROMPT]) if has_prompts(rows) else [prompt]
    return chain(cleaned, prompts, words)


def _read_shapes(arguments: CaptionDataArguments, split: str, max_samples: int | None) -> SplitColumns:
    style = arguments.dataset_config_name or SHAPES_STYLES[0]
    if style not in SHAPES_STYLES:
        raise RecipeError(f"dataset_config_name is {style!r}: the styles of {SHAPES!r} are {', '.join(SHAPES_STYLES)}.")
    splits = parse_split(split, SHAPES_SPLITS, SHAPES)
    found = ((name_scene(name, number), scene) for name in splits for number, scene in enumerate(make_scenes(name)))
    scenes = list(islice(found, max_samples))
    captions = [arguments.surround(describe_scene(scene, cast("Style", style))) for _, scene in scenes]
    return SplitColumns(images_from_paths([address for address, _ in scenes]), captions, range(len(scenes)))
