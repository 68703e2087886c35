"""Look at the names in webdataset tars before they are read, and choose the columns."""

from __future__ import annotations

import logging
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import datasets
import fsspec
from datasets import Dataset, DatasetBuilder, Image, IterableDataset, List, Value

from blip_recipe.data.columns import check_column
from blip_recipe.data.webdataset import (
    CAPTION,
    IMAGE,
    JSON,
    KEY,
    NUMBERS,
    PICTURES,
    TEXTS,
    URL,
    TarSamples,
    decode,
    last,
    make_features,
    split_name,
    type_of,
)
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from blip_recipe.data.arguments import DataArguments

logger = logging.getLogger(__name__)

LOCAL_FILES, REMOTE_FILES = 20_000, 200
"""How many files are looked at, in local tars and in the first tar on the Hub. Only their headers are read."""

OTHER_TEXTS = ("transcript", "question", "questions", "answer", "answers")
"""Extensions of texts that are not captions."""


def load_source(
    arguments: DataArguments, name: str, split: str, *, streaming: bool = False
) -> Dataset | IterableDataset:
    """Load a split like `datasets.load_dataset`, but webdataset tars by sample.

    Args:
        arguments: The recipe's data keys.
        name: The data set: a Hub id, or the absolute path of a directory.
        split: The split, or a sum of splits.
        streaming: Whether to return a stream.

    Raises:
        RecipeError: See `read_by_sample`.
    """
    builder = datasets.load_dataset_builder(name, arguments.dataset_config_name, revision=arguments.dataset_revision)
    builder = read_by_sample(builder, arguments, split)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def read_by_sample(builder: DatasetBuilder, arguments: DataArguments, split: str) -> DatasetBuilder:
    """Replace the builder of webdataset tars by `TarSamples`; return other builders unchanged.

    Args:
        builder: A builder of `datasets`.
        arguments: The recipe's data keys.
        split: The split, or a sum of splits, whose tars are looked at.

    Raises:
        RecipeError: A column does not exist, the tars hold no texts, or the files of samples are torn apart (with
            `on_bad_image: skip` only if all are).
    """
    if builder.name != "webdataset":
        return builder
    files = builder.config.data_files
    names = dict.fromkeys(part.partition("[")[0].strip() for part in split.split("+"))
    found = look_into([str(url) for name in names if name in files for url in files[name]])
    columns, merged = choose_fields(found, arguments, f"{arguments.dataset_name}, split {split!r},")
    found.report_torn(skip=arguments.on_bad_image == "skip")
    return TarSamples(
        dataset_name=builder.dataset_name,
        config_name=builder.config.name,
        hash=builder.hash,
        base_path=builder.base_path,
        info=builder.info.copy(),
        features=make_features(columns),
        token=builder.token,
        repo_id=builder.repo_id,
        data_files=files,
        storage_options=builder.storage_options,
        merged=merged,
    )


@dataclass
class Found:
    """What the names in tars tell.

    Attributes:
        tar: The first tar that has samples.
        extensions: All extensions, in lower case.
        texts: The extensions of captions; several if a sample has several.
        has_captions: Whether a JSON file holds captions. It is not looked at if there are `texts`.
        keys: The names of all samples, each with its tar.
        alone: Places with only a picture or only a text, by sample.
        torn: Samples with a picture in one place and a text in another.
    """

    tar: str = ""
    extensions: dict[str, None] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    has_captions: bool = False
    keys: set[tuple[str, str]] = field(default_factory=set)
    alone: dict[tuple[str, str], bool] = field(default_factory=dict)
    torn: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, url: str, key: str, extensions: Sequence[str]) -> None:
        """Count a sample."""
        self.tar = self.tar or PurePosixPath(url).name
        self.extensions |= dict.fromkeys(extensions)
        self.keys.add((url, key))
        texts = [name for name in TEXTS if name in extensions]
        self.texts = max(self.texts, texts, key=len)
        has_picture = any(last(name) in PICTURES for name in extensions)
        has_text = any(last(name) in (*TEXTS, *OTHER_TEXTS, *JSON) for name in extensions)
        if has_picture != has_text and self.alone.setdefault((url, key), has_picture) != has_picture:
            self.torn[url, key] = None

    def report_torn(self, *, skip: bool) -> None:
        """Warn of samples whose files are not adjacent, if others can be used.

        Raises:
            RecipeError: There are such samples, and without `skip`, or no others.
        """
        if not self.torn:
            return
        url, key = next(iter(self.torn))
        told = (
            f"{len(self.torn):,} of {len(self.keys):,} samples have only a picture or only a text, such as {key} in "
            f"{PurePosixPath(url).name}: their files are not next to each other. Write the files of a sample one after "
            "the other, for example with `tar --sort=name`."
        )
        if skip and len(self.torn) < len(self.keys):
            logger.warning(told)
        else:
            raise RecipeError(told)


def look_into(urls: Iterable[str]) -> Found:
    """Look at the names of the first files in tars. A broken tar is left to its reader, which says what is wrong."""
    found = Found()
    left = LOCAL_FILES
    for url in urls:
        remote = "://" in url
        left = REMOTE_FILES if remote else left
        try:
            with open_tar(url) as tar:
                members = [member for member in islice(tar, left) if member.isreg()]
                _add_samples(found, url, tar, members)
        except (OSError, EOFError, zlib.error, tarfile.TarError):
            continue
        left -= len(members)
        if remote or left <= 0:
            break
    return found


def _add_samples(found: Found, url: str, tar: tarfile.TarFile, members: Iterable[tarfile.TarInfo]) -> None:
    visible = (member for member in members if not PurePosixPath(member.name).name.startswith((".", "__")))
    named = ((*name, member) for member in visible if (name := split_name(member.name)))
    for key, group in groupby(named, lambda each: each[0]):
        files = {extension.lower(): member for _, extension, member in group}
        found.add(url, key, list(files))
        if not found.texts and not found.has_captions:
            found.has_captions = any(_has_captions(tar, name, files[name]) for name in JSON if name in files)


def _has_captions(tar: tarfile.TarFile, name: str, member: tarfile.TarInfo) -> bool:
    file = tar.extractfile(member)
    try:
        return bool(file and decode(name, file.read(), member.name))
    except ValueError:
        return False


@contextmanager
def open_tar(url: str) -> Iterator[tarfile.TarFile]:
    """Open a local or remote tar for reading of its headers."""
    with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file) as tar:
        yield tar


def choose_fields(found: Found, arguments: DataArguments, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Choose the columns, and which of them are merged from files with several extensions.

    The columns that the recipe names are extensions. Without names, pictures are merged into `image` and texts into
    `caption`, unless a sample has several texts: then each extension is a column, and the recipe has to choose.

    Raises:
        RecipeError: A column does not exist, or there are no texts.
    """
    captions = getattr(arguments, "caption_column", None)
    named = {"image_column": arguments.image_column, "image_id_column": arguments.image_id_column}
    others = ("question_column", "answer_column", "prompt_column", "group_column")
    named |= {key: getattr(arguments, key, None) for key in others}
    asked = [(key, name) for key, name in named.items() if name] + [("caption_column", name) for name in captions or ()]
    known = [*found.extensions, IMAGE, CAPTION, KEY, URL]
    for key, name in asked:
        if found.keys and name.lower() not in known:
            check_column(known, name, key, where)
    columns = {name: type_of(name) for _, name in asked if name not in (KEY, URL)}
    merged = [name for name in columns if name in (IMAGE, CAPTION) and name not in found.extensions]
    if arguments.image_column is None:
        pictures = _separate_pictures(found)
        columns |= {name: Image() for name in pictures}
        merged += [] if pictures else [IMAGE]
    if not hasattr(arguments, "caption_column"):
        columns |= {name: type_of(name) for name in found.extensions if last(name) in (*TEXTS, *OTHER_TEXTS, *NUMBERS)}
    elif captions is None:
        texts = _separate_texts(found)
        columns |= {name: type_of(name) for name in texts}
        merged += [] if texts else [CAPTION]
    types = {IMAGE: Image(), CAPTION: List(Value("string"))}
    return columns | {name: types[name] for name in merged}, tuple(merged)


def _separate_pictures(found: Found) -> list[str]:
    """Extensions such as `left.jpg` and `right.jpg`, if there is no plain one to merge."""
    pictures = [name for name in found.extensions if last(name) in PICTURES]
    return [] if any(name in PICTURES for name in pictures) else pictures


def _separate_texts(found: Found) -> list[str]:
    """Extensions of texts that are not merged, because a sample has several or they may be no captions.

    Raises:
        RecipeError: There are no texts at all.
    """
    if len(found.texts) > 1:
        return found.texts
    if found.texts or found.has_captions or not found.keys:
        return []
    others = [name for name in found.extensions if last(name) in (*TEXTS, *OTHER_TEXTS)]
    if not others:
        raise RecipeError(
            f"{found.tar} has no captions in its first {len(found.keys):,} samples, only "
            f"{', '.join(found.extensions)}: expected a text beside each picture, such as 0001.jpg, 0001.txt (or "
            "0001.json with a caption), and the files of a sample one after the other."
        )
    return others
