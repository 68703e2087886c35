"""Join the columns that a source returns into rows of `image`, `image_id` and `captions`."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow.compute as pc
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from blip_recipe.data.images import digest
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.groups import name_groups

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import pyarrow as pa

PROMPT = "prompt"
"""The column of the prompts of rows, if each has its own."""

GROUP = "group"
"""The column of the groups of rows, which are also scored by themselves."""

MAX_LISTED = 10
"""Maximum number of items that an error message lists."""

MAX_SHOWN = 200
"""Maximum characters of data that an error message repeats."""

PROBED = 100
"""How many paths are checked before the error that `image_root` is wrong."""

MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
"""How files of pictures begin."""

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")


@dataclass
class SplitColumns:
    """The columns of a split, row by row. Several rows may belong to one image.

    Args:
        images: One column `image`, not decoded (`datasets.Image(decode=False)`).
        captions: The captions of each row.
        image_ids: The image id of each row; None if the source has no ids, so that rows of the same picture (and the
            same prompt) are one image.
        texts: Further texts of each row by column: `prompt`, if rows have prompts of their own, and `group`.
    """

    images: Dataset
    captions: list[list[str]]
    image_ids: Sequence[int | str] | None
    texts: Mapping[str, list[str]] = field(default_factory=dict)


def join_columns(columns: SplitColumns, where: str) -> Dataset:
    """Join columns into rows of `image`, `image_id` and `captions`, one image per row, in order of first appearance.

    Rows also have a `prompt` and a `group` if the source has them. Pictures are neither decoded nor copied.

    Raises:
        RecipeError: There are no rows, ids have the wrong type, rows with the same id have different prompts or groups,
            or groups cannot be scored (see `name_groups`).
    """
    if len(columns.images) == 0:
        raise RecipeError(f"{where} is empty: expected at least one picture with captions.")
    image_ids = _number_rows(columns) if columns.image_ids is None else columns.image_ids
    for name, texts in columns.texts.items():
        check_same_text(name, image_ids, texts, where)
    name_groups(columns.texts.get(GROUP, ()), where)
    id_type = infer_id_type(image_ids, where)
    captions: dict[int | str, list[str]] = {}
    first_rows: dict[int | str, int] = {}
    for row, (image_id, found) in enumerate(zip(image_ids, columns.captions, strict=True)):
        first_rows.setdefault(image_id, row)
        captions.setdefault(image_id, []).extend(found)
    cells = {"image_id": list(image_ids), "captions": [captions[image_id] for image_id in image_ids], **columns.texts}
    features = {"image_id": Value(id_type), "captions": List(Value("string"))}
    facts = Dataset.from_dict(cells, features=Features(features | {name: Value("string") for name in columns.texts}))
    # Join before selecting rows: joining selected rows would copy their pictures.
    rows = concatenate_datasets([columns.images, facts], axis=1)
    return rows if len(first_rows) == len(rows) else rows.select(list(first_rows.values()))


def iterate_column(rows: Dataset, name: str) -> Iterator[Any]:
    """Yield the cells of a column; ten times faster than `iter(rows[name])`, which reads them one by one."""
    for batch in rows.select_columns([name]).iter(1000):
        yield from cast("Mapping[str, Any]", batch)[name]


def has_prompts(rows: Any) -> bool:
    """Whether rows have prompts of their own."""
    return PROMPT in rows.column_names


def _number_rows(columns: SplitColumns) -> list[int]:
    """Number the different pictures; a picture with several prompts has several numbers."""
    numbers = number_pictures(columns.images)
    if PROMPT not in columns.texts:
        return numbers
    found: dict[tuple[int, str], int] = {}
    return [found.setdefault(each, len(found)) for each in zip(numbers, columns.texts[PROMPT], strict=True)]


def check_same_text(name: str, image_ids: Sequence[int | str], texts: Sequence[str], where: str) -> None:
    """Check that rows with the same id have the same prompt or group; `name` is `prompt` or `group`.

    Raises:
        RecipeError: An image has several.
    """
    first: dict[int | str, str] = {}
    for image_id, text in zip(image_ids, texts, strict=True):
        if (other := first.setdefault(image_id, text)) != text:
            raise RecipeError(
                f"{where} has two {name}s for the image {image_id!r:.50}: {other!r:.60} and {text!r:.60}. Expected "
                f"one {name} for each image id: give rows with different {name}s different ids."
            )


def number_pictures(images: Dataset) -> list[int]:
    """Number the different pictures of a column `image` in order of first appearance, as the ids of rows.

    Pictures are the same if their path or URL is, or their embedded bytes. A row without a picture has its own number.
    """
    numbers: dict[str | bytes | int, int] = {}
    keys = picture_keys(images)
    return [numbers.setdefault(-row if key is None else key, len(numbers)) for row, key in enumerate(keys)]


def picture_keys(images: Dataset) -> list[str | bytes | None]:
    """What tells the pictures of a column `image`: the digest of embedded bytes, or the path; None without either."""
    keys = list(chain.from_iterable(map(_picture_keys, images.data.column("image").chunks)))
    if images._indices is None:
        return keys
    return [keys[row] for row in images._indices.column(0).to_pylist()]


def embedded_bytes(images: Dataset) -> int:
    """The bytes of the embedded pictures of a column `image`, without reading them."""
    return pc.sum(pc.binary_length(pc.struct_field(images.data.column("image"), "bytes"))).as_py() or 0


def _picture_keys(chunk: pa.StructArray) -> Iterator[str | bytes | None]:
    """The digest of embedded bytes, or the path of each picture."""
    contents, paths = chunk.field("bytes"), chunk.field("path")
    for row in range(len(chunk)):
        content = contents[row]
        found = content.as_buffer() if content.is_valid else b""
        yield digest(found) if len(found) else paths[row].as_py()


def stored_paths(images: Dataset) -> list[str | None]:
    """The path or URL of each picture of a column `image`, without reading embedded ones, which have None."""
    column = images.data.column("image")
    paths = pc.if_else(pc.is_valid(pc.struct_field(column, "bytes")), None, pc.struct_field(column, "path"))
    return (paths if images._indices is None else paths.take(images._indices.column(0))).to_pylist()


def infer_id_type(image_ids: Sequence[object], where: str) -> str:
    """Infer the column type of ids: `int64` if all are integers, `string` if all are strings."""
    if all(type(each) is str for each in image_ids):
        return "string"
    for each in image_ids:
        if type(each) is not int or not -(2**63) <= each < 2**63:
            raise RecipeError(
                f"{where} has the image id {each!r:.50}: expected 64-bit integers for all images, or text for all."
            )
    return "int64"


def images_from_paths(paths: Sequence[str | None]) -> Dataset:
    """Put paths and URLs into a column `image`."""
    return Dataset.from_dict({"image": list(paths)}, features=Features({"image": Image(decode=False)}))


def absolute(path: Path | str) -> str:
    """Make `path` absolute and remove `..`, without resolving links."""
    return os.path.abspath(path)  # noqa: PTH100 - `Path.resolve` follows links


@dataclass(frozen=True)
class PathRoot:
    """The folder that the paths of a data set may not leave.

    Args:
        folder: Base directory of relative paths, which may not leave it by `..`. None allows no local paths at all.
        absolute: Whether absolute paths may lead anywhere, as in the user's own file.
        probed: Whether an error says at once that none of the paths exists.
    """

    folder: Path | None
    absolute: bool = False
    probed: bool = False

    def resolve(self, paths: Sequence[str | None], where: str) -> list[str | None]:
        """Make paths absolute; URLs and None stay unchanged.

        Links are allowed: only the owner of the folder can create them, not a list of paths.

        Raises:
            RecipeError: Paths lead out of the folder. The message names the first ten.
        """
        found = [path if path is None or "://" in path else self._place(_with_slashes(path)) for path in paths]
        outside = [path for path, place in zip(paths, found, strict=True) if path is not None and place is None]
        if outside:
            allowed = f"paths below {self.folder}" if self.folder else "embedded pictures or URLs, or image_root"
            raise RecipeError(
                f"{where}: {len(outside):,} of {len(paths):,} paths are not allowed in this data set: "
                f"{join_first(list(map(repr, outside)))}. Expected {allowed}."
            )
        return found

    def _place(self, path: str) -> str | None:
        if self.folder is None:
            return None
        root, place = absolute(self.folder), absolute(self.folder / path)
        return (
            place if place.startswith(root.rstrip("/") + "/") or (self.absolute and Path(path).is_absolute()) else None
        )


def _with_slashes(path: str) -> str:
    """A path that may have been written on Windows."""
    return path.replace("\\", "/") if os.sep == "/" and "\\" in path and not os.path.exists(path) else path  # noqa: PTH110


def find_pictures(paths: Sequence[str | None], root: PathRoot, where: str) -> list[str | None]:
    """Resolve the paths that a source lists. Its relative paths start at `root`, or at the working directory.

    Raises:
        RecipeError: Paths are not allowed, or none of the first pictures exists.
    """
    places = root.resolve(paths, where)
    if not root.probed or _exists_any(places):
        return places
    if root.absolute:
        others = PathRoot(Path.cwd(), absolute=True).resolve(paths, where)
        if _exists_any(others):
            return others
    raise RecipeError(
        f"{where} lists pictures of which none exists, such as {next(filter(None, places))[:MAX_SHOWN]}: set "
        "image_root to the base directory of their paths."
    )


def _exists_any(places: Sequence[str | None]) -> bool:
    """Whether one of the first pictures exists or is a URL, or there is none."""
    probed = list(filter(None, places[:PROBED]))
    return not probed or any("://" in place or os.path.exists(place) for place in probed)  # noqa: PTH110 - any name


def decode_base64(cells: Sequence[str | None]) -> list[bytes | None] | None:
    """Decode a column of pictures written as base64 text, also as `data:` URLs; None if it is no such column."""
    first = next((cell for cell in cells if cell), "")
    if not (first.startswith("data:image/") or _is_base64_picture(first)):
        return None
    contents: list[bytes | None] = []
    for cell in cells:
        try:
            contents.append(base64.b64decode(cell.rpartition(",")[2], validate=True) if cell else None)
        except ValueError:
            contents.append(b"")  # reported as a picture that cannot be read
    return contents


def _is_base64_picture(cell: str) -> bool:
    """Whether a text is a picture in base64. A name that consists of letters is none: it begins like no picture."""
    return len(cell) >= 12 and bool(_BASE64.fullmatch(cell)) and base64.b64decode(cell[:12]).startswith(MAGIC)


def images_from_bytes(contents: Sequence[bytes | None]) -> Dataset:
    """Put encoded pictures into a column `image`."""
    cells = [{"bytes": content, "path": None} for content in contents]
    return Dataset.from_dict({"image": cells}, features=Features({"image": Image(decode=False)}))


def parse_split(split: str, known: Collection[str], where: str) -> list[str]:
    """Split a sum of splits (`train+restval`) into names.

    Raises:
        RecipeError: A name is not in `known`.
    """
    names = [name.strip() for name in split.split("+")]
    for name in names:
        if name not in known:
            raise RecipeError(f"{where} has no split {name!r}: its splits are {', '.join(known)}.")
    return names


def join_first(names: Sequence[object]) -> str:
    """Join the first ten of `names` for an error message."""
    more = ", …" if len(names) > MAX_LISTED else ""
    return ", ".join(str(name)[:MAX_SHOWN] for name in names[:MAX_LISTED]) + more
