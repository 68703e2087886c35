"""Read webdataset tars sample by sample, whatever files each sample has.

A sample is the run of adjacent files with the same name up to the first dot: `0001.jpg`, `0001.txt`. The reader of
`datasets` takes the columns from the first samples and fails or loses data if later ones have other files. `TarSamples`
has fixed columns: the picture of any format as `image`, and the texts as `caption`. What a sample lacks is an empty
picture or no caption, so the checks of rows name the sample.

`datasets` replaces functions for paths and files in this module, so it uses none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any

import datasets
from datasets import Features, Image, List, Value
from datasets.builder import Key

from blip_recipe.data.captions import TEXT_KEYS, flatten_texts, read_captions
from blip_recipe.data.columns import CAPTION_NAMES
from blip_recipe.data.listing import IMAGE_EXTENSIONS

IMAGE, CAPTION, KEY, URL = "image", "caption", "__key__", "__url__"
"""Columns: the picture, the captions, the name of the sample, and its tar."""

PICTURES = tuple(dict.fromkeys(("jpg", "jpeg", "png", "webp", *(name[1:] for name in IMAGE_EXTENSIONS))))
"""Extensions of pictures. If a sample has several, the first one is `image`."""

TEXTS = ("txt", "caption", "captions", "text")
"""Extensions of captions, in order of preference."""

JSON = ("json", "jsn")
NUMBERS = ("cls", "cls2", "id", "index", "inx")

Files = Mapping[str, tuple[str, bytes]]
"""The files of a sample by lower-case extension: the extension as it is, and the content."""


def split_name(path: str) -> tuple[str, str] | None:
    """Split the path of a file into the name of its sample and its extension; None if it belongs to no sample."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return (f"{folder}{slash}{stem}", extension) if stem and extension else None


def last(extension: str) -> str:
    """The last part of an extension such as `img.JPG`, in lower case."""
    return extension.lower().rpartition(".")[2]


def type_of(extension: str) -> Any:
    """The column type of the files with an extension."""
    kind = last(extension)
    if kind in PICTURES:
        return Image()
    if kind in JSON:
        return List(Value("string"))
    return Value("int64" if kind in NUMBERS else "string")


@dataclass
class TarConfig(datasets.BuilderConfig):
    """Configuration of `TarSamples`.

    Attributes:
        merged: Which of the columns `image` and `caption` are merged from files with several extensions. Any other
            column has the name of its extension.
    """

    merged: tuple[str, ...] = ()


class TarSamples(datasets.GeneratorBasedBuilder):
    """Builder of `datasets` with one row per sample. Its `features` are the columns to read."""

    BUILDER_CONFIG_CLASS = TarConfig
    DEFAULT_WRITER_BATCH_SIZE = 100

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        paths = dl_manager.download(self.config.data_files)
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={
                    "urls": list(map(str, urls)),
                    "tars": [dl_manager.iter_archive(path) for path in paths[split]],
                },
            )
            for split, urls in self.config.data_files.items()
        ]

    def _generate_examples(self, urls: list[str], tars: list[Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
        for number, (url, tar) in enumerate(zip(urls, tars, strict=True)):
            for row, (key, files) in enumerate(group_files(tar)):
                where = f"{url.rpartition('/')[2]}/{key}"
                cells = {
                    column: read_cell(column, feature, files, where, merged=column in self.config.merged)
                    for column, feature in self.info.features.items()
                }
                yield Key(number, row), cells | {KEY: key, URL: url}


def group_files(tar: Iterable[tuple[str, IO[bytes]]]) -> Iterator[tuple[str, Files]]:
    """Read the samples of a tar: their names and files.

    Raises:
        ValueError: A sample has two files with the same extension.
    """
    named = ((*name, file) for path, file in tar if (name := split_name(path)))
    for key, members in groupby(named, lambda each: each[0]):
        files: dict[str, tuple[str, bytes]] = {}
        for _, extension, file in members:
            if extension.lower() in files:
                raise ValueError(f"the sample {key} has two files with the extension {extension}: keep one of them.")
            files[extension.lower()] = extension, file.read()
        yield key, files


def read_cell(column: str, feature: Any, files: Files, where: str, *, merged: bool) -> Any:
    """Read the value of a column from the files of a sample.

    Raises:
        ValueError: A file does not hold what its extension says.
    """
    if merged and column == CAPTION:
        return read_texts(files, where)
    found = next((name for name in PICTURES if name in files), "") if merged else column.lower()
    name, content = files.get(found, ("", None))
    where = f"{where}.{name}" if name else where
    if isinstance(feature, Image):
        return {"bytes": content or b"", "path": where}
    return None if content is None else decode(found, content, where)


def read_texts(files: Files, where: str) -> list[str]:
    """Read the captions of a sample: a file of text, one caption per line, or else a JSON file with a caption."""
    texts: list[str] = []
    for name in (name for name in (*TEXTS, *JSON) if name in files and not texts):
        extension, content = files[name]
        texts = decode(name, content, f"{where}.{extension}")
        texts = read_captions(texts) if isinstance(texts, str) else texts
    return texts


def decode(extension: str, content: bytes, where: str) -> Any:
    """Decode a file: a number, a text, or the captions in a JSON file.

    Raises:
        ValueError: It is not UTF-8, not JSON or not a number. The message names it.
    """
    kind = last(extension)
    try:
        if kind in JSON:
            return captions_in(json.loads(content))
        return int(content) if kind in NUMBERS else content.decode("utf-8-sig")
    except (ValueError, RecursionError) as error:
        expected = "JSON" if kind in JSON else "a whole number" if kind in NUMBERS else "text in UTF-8"
        raise ValueError(f"{where} cannot be read ({error}): expected {expected}.") from error


def captions_in(content: Any) -> list[str]:
    """The captions in the content of a JSON file: those of the first known key, or a list of texts."""
    if isinstance(content, dict):
        content = next((content[name] for name in CAPTION_NAMES if content.get(name)), None)
    try:
        texts = flatten_texts(content, TEXT_KEYS)
    except TypeError:
        return []
    return [text.strip() for text in texts if text.strip()]


def make_features(columns: Mapping[str, Any]) -> Features:
    """The columns of `TarSamples`, with the name and the tar of each sample."""
    return Features({**columns, KEY: Value("string"), URL: Value("string")})
