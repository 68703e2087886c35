"""Read Hub data sets and directories (imagefolder, parquet, webdataset tars) with Hugging Face's `datasets`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import fsspec
import pyarrow.compute as pc
from datasets import Dataset, Image, IterableDataset, Value
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from blip_recipe.data.captions import read_captions
from blip_recipe.data.columns import check_column, choose_caption_columns, choose_image_column
from blip_recipe.data.metadata import check_metadata
from blip_recipe.data.rows import PathRoot, SplitColumns, absolute, images_from_paths
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blip_recipe.data.arguments import CaptionDataArguments, DataArguments


def read_table(arguments: CaptionDataArguments, split: str, max_rows: int | None = None) -> SplitColumns:
    """Read the pictures, captions and ids of a split of a Hub data set or directory.

    Args:
        arguments: The recipe's data keys.
        split: The split, or a sum of splits.
        max_rows: Maximum number of rows to fetch with `streaming`.

    Raises:
        RecipeError: The data set, split or column does not exist, or a column has the wrong type.
    """
    table = load_table(arguments, split, max_rows)
    where = f"{arguments.dataset_name}, split {split!r},"
    image_column = choose_image_column(table.features, arguments.image_column, where)
    caption_columns = choose_caption_columns(table.features, arguments.caption_column, where)
    image_ids = None
    if arguments.image_id_column is not None:
        image_ids = ids_of(table, arguments.image_id_column, where)
    return SplitColumns(
        images_of(table, image_column, arguments, where), captions_of(table, caption_columns, where), image_ids
    )


def is_directory(arguments: DataArguments) -> bool:
    """Whether the data set is a local directory and not a Hub id."""
    return Path(str(arguments.dataset_name)).expanduser().is_dir()


def load_table(arguments: DataArguments, split: str, max_rows: int | None = None) -> Dataset:
    """Load a split with all its columns.

    With `streaming`, only the first `max_rows` rows of this split are fetched from the Hub.

    Raises:
        RecipeError: The split cannot be found or read. The message names similar paths, or the reason of `datasets`.
    """
    name = str(arguments.dataset_name)
    if is_directory(arguments):
        name = str(Path(name).expanduser().resolve())
        check_metadata(Path(name))
    elif _looks_like_path(name):
        raise RecipeError(f"There is no file or directory {name}.{_nearest(Path(name).expanduser())}")
    try:
        if arguments.streaming and not is_directory(arguments):
            return _fetch_rows(arguments, split, max_rows)
        return datasets.load_dataset(
            name, arguments.dataset_config_name, split=split, revision=arguments.dataset_revision
        )
    except (OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, DatasetsError) as error:
        # Its parsers raise many exception types for broken files.
        raise RecipeError(explain_load_error(error, arguments, split)) from error


def _fetch_rows(arguments: DataArguments, split: str, max_rows: int | None) -> Dataset:
    """Fetch the first rows of a split into the cache of `datasets`, without decoding pictures."""
    streams = [
        datasets.load_dataset(
            arguments.dataset_name,
            arguments.dataset_config_name,
            split=name.strip(),
            revision=arguments.dataset_revision,
            streaming=True,
        ).decode(False)
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
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith(".json")


def _nearest(path: Path) -> str:
    """The end of an error message about a missing path: suggest a similar name."""
    while not path.parent.exists():
        path = path.parent
    neighbours = [each.name for each in path.parent.iterdir()]
    nearest = get_close_matches(path.name, neighbours, n=1)
    return f" Did you mean {path.parent / nearest[0]}?" if nearest else f" {path.parent} has no {path.name}."


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


def path_root(arguments: DataArguments) -> PathRoot:
    """The allowed paths: below `image_root`; without it, anywhere for a local directory and nowhere for a Hub id."""
    if arguments.image_root is not None:
        return PathRoot(Path(arguments.image_root).expanduser())
    if is_directory(arguments):
        return PathRoot(Path(str(arguments.dataset_name)).expanduser(), absolute=True)
    return PathRoot(None)


def images_of(table: Dataset, column: str, arguments: DataArguments | None, where: str) -> Dataset:
    """The column of pictures as `image`, not decoded, with paths checked and resolved.

    `arguments` tell which paths are allowed. Without them, paths come from the caller and stay unchanged.
    """
    feature = table.features[column]
    images = table.select_columns([column])
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        paths = images[column][:]
        return images_from_paths(path_root(arguments).resolve(paths, where) if arguments else paths)
    is_struct = isinstance(feature, dict) and feature.keys() <= {"bytes", "path"}
    if not (isinstance(feature, Image) or is_struct or (isinstance(feature, Value) and "binary" in feature.dtype)):
        raise RecipeError(f"{where} column {column!r} holds {feature}: expected pictures, bytes, paths or URLs.")
    images = images.cast_column(column, Image(decode=False))
    images = images if column == "image" else images.rename_column(column, "image")
    return _resolve_structs(images, arguments, where) if arguments else images


def _resolve_structs(images: Dataset, arguments: DataArguments, where: str) -> Dataset:
    """Check and resolve the paths of structs of `bytes` and `path` that have no bytes."""
    column = images.data.column("image")
    embedded = pc.is_valid(pc.struct_field(column, "bytes"))
    if pc.all(embedded).as_py():
        return images
    paths = pc.if_else(embedded, None, pc.struct_field(column, "path")).to_pylist()
    root = path_root(arguments)
    # For an imagefolder on the Hub, `datasets` returns paths of its own downloads. They are not part of the data.
    ours = () if root.folder else _downloads_of(str(arguments.dataset_name))
    foreign = [None if path and absolute(path).startswith(ours) else path for path in paths]
    resolved = [new or old for new, old in zip(root.resolve(foreign, where), paths, strict=True)]
    if resolved == paths:
        return images
    if pc.any(embedded).as_py():
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
