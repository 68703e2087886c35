"""Read a split as a table: local files and folders with `layouts`, Hub data sets and shards with `datasets`."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import fsspec
import pyarrow.compute as pc
from datasets import Dataset, Image, IterableDataset, ReadInstruction, Value
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from blip_recipe.data.captions import read_captions
from blip_recipe.data.columns import (
    check_column,
    check_text_column,
    choose_caption_columns,
    choose_image_column,
    read_text,
)
from blip_recipe.data.layouts import FILES, FOLDERS, Table, read_layout
from blip_recipe.data.layouts.folders import SPLITS, canonical_split, is_picture_folder, list_folder
from blip_recipe.data.rows import (
    PathRoot,
    SplitColumns,
    absolute,
    decode_base64,
    find_pictures,
    images_from_bytes,
    images_from_paths,
    number_pictures,
    stored_paths,
)
from blip_recipe.data.tars import load_source
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from blip_recipe.data.arguments import CaptionDataArguments, DataArguments


def read_table(arguments: CaptionDataArguments, split: str, max_rows: int | None = None) -> SplitColumns:
    """Read the pictures, captions, ids, prompts and groups of a split.

    Args:
        arguments: The recipe's data keys.
        split: The split, a slice of it, or a sum of these.
        max_rows: Maximum number of rows to fetch with `streaming`.

    Raises:
        RecipeError: The data set, split or column does not exist, or a column has the wrong type.
    """
    table = load_table(arguments, split, max_rows)
    where = f"{arguments.dataset_name}, split {split!r},"
    image_column = choose_image_column(table.rows.features, arguments.image_column or table.image_column, where)
    caption_columns = choose_caption_columns(table.rows.features, arguments.caption_column, where)
    id_column = arguments.image_id_column or table.id_column
    return SplitColumns(
        images_of(table.rows, image_column, path_root(arguments, table), where, str(arguments.dataset_name)),
        list(map(arguments.surround, captions_of(table.rows, caption_columns, where))),
        None if id_column is None else ids_of(table.rows, id_column, where),
        {name: texts_of(table.rows, name, column, where) for name, column in arguments.text_columns().items()},
    )


def is_directory(arguments: DataArguments) -> bool:
    """Whether the data set is a local directory and not a Hub id."""
    return Path(str(arguments.dataset_name)).expanduser().is_dir()


def kind_of_folder(arguments: DataArguments) -> str | None:
    """The kind of a local directory, a key of `FOLDERS`."""
    folder = list_folder(Path(str(arguments.dataset_name)).expanduser())
    return next((kind for kind, (fits, _) in FOLDERS.items() if fits(folder)), None)


def load_table(arguments: DataArguments, split: str, max_rows: int | None = None) -> Table:
    """Load a split with all its columns.

    With `streaming`, only the first `max_rows` rows of this split are fetched from the Hub.

    Raises:
        RecipeError: The split cannot be found or read. The message names similar paths, or the reason of `datasets`.
    """
    name = str(arguments.dataset_name)
    path = Path(name).expanduser()
    if path.exists():
        name = str(path.resolve())
        if table := None if arguments.dataset_config_name else read_layout(path, arguments):
            return select_split(table, split, arguments)
    elif _looks_like_path(name):
        raise RecipeError(f"There is no file or directory {name}.{_nearest(path)}")
    try:
        if not path.exists():
            if arguments.streaming:
                return Table(_fetch_rows(arguments, split, max_rows))
            if table := _read_repository(arguments):
                return select_split(table, split, arguments)
        rows = load_source(arguments, name, split)
    except (OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, DatasetsError) as error:
        # Its parsers raise many exception types for broken files.
        raise RecipeError(explain_load_error(error, arguments, split)) from error
    return Table(rows)


def _read_repository(arguments: DataArguments) -> Table | None:
    """Download and read a Hub data set of picture files or zips; None for other data sets, which `datasets` reads."""
    name, revision = str(arguments.dataset_name), arguments.dataset_revision
    try:
        info = HfApi().dataset_info(name, revision=revision)
    except Exception:  # `datasets` may have it in its cache, and explains errors
        return None
    files = [each.rfilename for each in info.siblings or ()]
    has_configs = bool(info.card_data and info.card_data.get("configs"))
    if arguments.dataset_config_name or has_configs or not is_picture_folder(files):
        return None
    folder = Path(snapshot_download(name, repo_type="dataset", revision=info.sha or revision))
    return read_layout(folder, arguments)


def select_split(table: Table, split: str, arguments: DataArguments) -> Table:
    """Select the rows of a split. A slice (`train[:80%]`) counts images, so all rows of an image stay together.

    A folder without splits is the split `train`; a file without splits is also `validation` or `test`.

    Raises:
        RecipeError: There is no such split, or the slice is not valid.
    """
    where = f"{arguments.dataset_name}, split {split!r},"
    if len(table.rows) == 0:
        raise RecipeError(f"{where} is empty: expected at least one picture with captions.")
    names = table.splits if table.splits is not None else ["train"] * len(table.rows)
    known = {canonical_split(name): name for name in dict.fromkeys(names)}
    # A file is often one of several, such as `captions_val2014.json`: it may be called by any usual name.
    others = SPLITS if table.splits is None and Path(str(arguments.dataset_name)).expanduser().is_file() else {}
    images = _image_keys(table, arguments, where)
    rows: dict[int, None] = {}
    for part in split.split("+"):
        name, bracket, bounds = part.strip().partition("[")
        if name not in known.values() and canonical_split(name) not in known and name not in others:
            raise RecipeError(
                f"{arguments.dataset_name} has no split {name!r}: its splits are {', '.join(sorted(known.values()))}."
            )
        own = name if name in known.values() else known.get(canonical_split(name), "train")
        of_split = [row for row, each in enumerate(names) if each == own]
        kept = dict.fromkeys(images[row] for row in of_split)
        if bracket:
            try:
                (chosen,) = ReadInstruction.from_spec(f"all[{bounds}").to_absolute({"all": len(kept)})
            except (ValueError, AssertionError) as error:
                raise RecipeError(f"{where} is not valid ({error}): expected a slice such as 'train[:90%]'.") from error
            kept = dict.fromkeys(list(kept)[chosen.from_ : chosen.to])
        rows |= dict.fromkeys(row for row in of_split if images[row] in kept)
    return replace(table, rows=table.rows.select(list(rows)), splits=None)


def _fetch_rows(arguments: DataArguments, split: str, max_rows: int | None) -> Dataset:
    """Fetch the first rows of a split into the cache of `datasets`, without decoding pictures."""
    streams = [
        load_source(arguments, str(arguments.dataset_name), name.strip(), streaming=True).decode(False)
        for name in split.split("+")
    ]
    stream = datasets.concatenate_datasets(streams)
    if max_rows is not None:
        stream = stream.take(max_rows)
    return fetch_stream(stream, f"hf://datasets/{arguments.dataset_name}@")


def fetch_stream(stream: IterableDataset, source: str = "hf://datasets/") -> Dataset:
    """Write all rows of a stream to the cache of `datasets`, and embed pictures that are files of `source`."""
    return Dataset.from_generator(
        _yield_rows, features=stream.features, gen_kwargs={"stream": stream, "source": source}
    )


def _yield_rows(stream: IterableDataset, source: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of `stream`. Pictures that are files of the repository `source` are embedded; other paths stay."""
    images = [name for name, feature in (stream.features or {}).items() if isinstance(feature, Image)]
    for row in stream:
        for name in images:
            path = (row[name] or {}).get("path") or ""
            if row[name] and row[name]["bytes"] is None and path.rpartition("::")[2].startswith(source):
                with fsspec.open(path, "rb") as file:
                    row[name]["bytes"] = file.read()
        yield row


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.lower().endswith(tuple(FILES))
    )


def _nearest(path: Path) -> str:
    """The end of an error message about a missing path: suggest a similar name."""
    while not path.parent.exists():
        path = path.parent
    neighbours = [each.name for each in path.parent.iterdir()]
    nearest = get_close_matches(path.name, neighbours, n=1)
    return f" Did you mean {path.parent / nearest[0]}?" if nearest else f" {path.parent} has no {path.name}."


def _image_keys(table: Table, arguments: DataArguments, where: str) -> Sequence[Any]:
    """What tells the image of each row: its id, or its picture."""
    features = table.rows.features
    id_column = arguments.image_id_column or table.id_column
    if id_column is not None:
        return ids_of(table.rows, id_column, where)
    if isinstance(features.get("image_id"), Value) and None not in (image_ids := table.rows["image_id"][:]):
        return image_ids
    column = choose_image_column(features, arguments.image_column or table.image_column, where)
    return number_pictures(images_of(table.rows, column, None, where))


def explain_load_error(error: Exception, arguments: DataArguments, split: str) -> str:
    """Turn an error of `datasets.load_dataset` into a message that says what to do."""
    name, reason = arguments.dataset_name, str(error.__cause__ or error)
    if "corresponds to no data" in reason:
        return f"{name}, split {split!r}, is empty: expected at least one picture with captions."
    if "scripts are no longer supported" in reason:
        return (
            f"{name} has a loading script, which `datasets` no longer runs ({reason}). Look on the Hub for a copy in "
            "parquet, or set dataset_revision to 'refs/convert/parquet'."
        )
    if isinstance(error, DatasetNotFoundError):
        return (
            f"{name} is neither a local directory nor a data set on the Hub that you can access: {reason} If it is "
            "private or gated, request access on its page and log in with `hf auth login`."
        )
    expected = "an imagefolder (pictures and metadata.jsonl), parquet files or webdataset tars"
    return f"{name}, split {split!r}, cannot be read: {reason} Expected {expected}."


def path_root(arguments: DataArguments, table: Table | None = None) -> PathRoot:
    """The allowed paths: below `image_root`; without it, anywhere for local data.

    For data of the Hub, they are below the folder of its download, and nowhere without one. Relative paths of local
    data start at the root of `table`, by default the data set's directory.
    """
    root = table and table.root
    if arguments.image_root is not None:
        return PathRoot(Path(arguments.image_root).expanduser(), probed=root is not None)
    path = Path(str(arguments.dataset_name)).expanduser()
    local = path if path.exists() else None
    may_leave = local is not None and not (table and table.closed)
    return PathRoot(root or local, absolute=may_leave, probed=root is not None)


def images_of(table: Dataset, column: str, root: PathRoot | None, where: str, name: str = "") -> Dataset:
    """The column of pictures as `image`, not decoded, with paths checked and resolved.

    Args:
        table: The rows.
        column: The column of pictures.
        root: Which paths are allowed. Without it, paths come from the caller and stay unchanged.
        where: Name of the data set in error messages.
        name: The Hub id that `datasets` downloaded pictures of.

    Raises:
        RecipeError: The column holds no pictures, or paths are not allowed or do not exist.
    """
    feature = table.features[column]
    images = table.select_columns([column])
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        paths = images[column][:]
        if contents := decode_base64(paths):
            return images_from_bytes(contents)
        return images_from_paths(find_pictures(paths, root, where) if root else paths)
    is_struct = isinstance(feature, dict) and feature.keys() <= {"bytes", "path"}
    if not (isinstance(feature, Image) or is_struct or (isinstance(feature, Value) and "binary" in feature.dtype)):
        raise RecipeError(f"{where} column {column!r} holds {feature}: expected pictures, bytes, paths or URLs.")
    images = images.cast_column(column, Image(decode=False))
    images = images if column == "image" else images.rename_column(column, "image")
    return _resolve_structs(images, root, where, name) if root else images


def _resolve_structs(images: Dataset, root: PathRoot, where: str, name: str) -> Dataset:
    """Check and resolve the paths of structs of `bytes` and `path` that have no bytes."""
    paths = stored_paths(images)
    if not any(paths):
        return images
    # For an imagefolder on the Hub, `datasets` returns paths of its own downloads. They are not part of the data.
    ours = _downloads_of(name) if name and not root.folder else ()
    foreign = [None if path and absolute(path).startswith(ours) else path for path in paths]
    resolved = [new or old for new, old in zip(root.resolve(foreign, where), paths, strict=True)]
    if resolved == paths:
        return images
    if pc.any(pc.is_valid(pc.struct_field(images.data.column("image"), "bytes"))).as_py():
        raise RecipeError(f"{where} mixes embedded pictures and relative paths: expected one or the other.")
    return images_from_paths(resolved)


def _downloads_of(dataset_name: str) -> tuple[str, ...]:
    """The folders of `datasets` for downloaded and extracted files of a Hub data set, with a slash at the end."""
    repository = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=dataset_name, repo_type="dataset")
    folders = (repository, datasets.config.EXTRACTED_DATASETS_PATH, datasets.config.DOWNLOADED_DATASETS_PATH)
    return tuple(absolute(folder) + "/" for folder in folders)


def captions_of(table: Dataset, columns: list[str], where: str) -> list[list[str]]:
    """Read the captions of each row from one or several columns.

    Raises:
        RecipeError: A cell holds another type.
    """
    cells = table.select_columns(columns).to_list()
    captions: list[list[str]] = []
    for row, cell in enumerate(cells):
        try:
            # A string in a single column holds one caption per line. With several columns, each cell is one caption.
            captions.append(read_captions(cell[columns[0]] if len(columns) == 1 else list(cell.values())))
        except TypeError as error:
            raise RecipeError(f"{where} row {row} holds {error}: expected captions as text.") from error
    return captions


def texts_of(table: Dataset, name: str, column: str, where: str) -> list[str]:
    """The values of a column of prompts or groups, stripped at their end; an empty cell is an empty text.

    Raises:
        RecipeError: The column is missing, or holds something else (see `check_text_column`).
    """
    check_text_column(table.features, name, column, where)
    feature = table.features[column]
    return [read_text(cell, feature) for cell in table.select_columns([column]).to_dict()[column]]


def ids_of(table: Dataset, column: str, where: str) -> list[Any]:
    """The values of a column of ids.

    Raises:
        RecipeError: The column is missing, has another type than integers or text, or has empty cells.
    """
    check_column(table.features, column, "image_id_column", where)
    feature = table.features[column]
    if not (isinstance(feature, Value) and ("int" in feature.dtype or "string" in feature.dtype)):
        raise RecipeError(f"{where} column {column!r} holds {feature}: expected integers or text as ids.")
    image_ids = table.select_columns([column]).to_dict()[column]
    if None in image_ids:
        raise RecipeError(f"{where} row {image_ids.index(None)} has no {column!r}: expected an id in each row.")
    return image_ids
