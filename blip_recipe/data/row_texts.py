"""Read the texts of a task from the rows of a shard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import List, Value

from blip_recipe.data.captions import read_captions, validate_captions
from blip_recipe.data.columns import check_column, check_text_column, choose_caption_columns, read_text
from blip_recipe.data.rows import SplitColumns, check_same_text, join_columns
from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from datasets import Dataset, Features

    from blip_recipe.data.arguments import CaptionDataArguments


class RowTexts(ABC):
    """The texts of a task in the rows of a stream.

    Attributes:
        unit: The noun of what a stream counts: an image, or a question about one.
        counted: The text whose entries are counted, such as the captions of an image.
        joins_rows: Whether adjacent rows with the same image id are one image.
        id_column: The column of image ids, if there is one.
    """

    unit: ClassVar[str]
    counted: ClassVar[str]
    joins_rows: ClassVar[bool]
    id_column: str | None

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The columns that are read, without those of pictures and image ids."""

    @property
    @abstractmethod
    def features(self) -> dict[str, Any]:
        """The types of the texts that `read` returns."""

    @abstractmethod
    def read(self, rows: Sequence[Mapping[str, Any]], where: Callable[[int], str]) -> dict[str, Any]:
        """Read the texts of the rows of an image.

        Args:
            rows: The rows; one, unless rows are joined.
            where: Names a row in error messages, by its index.

        Raises:
            RecipeError: A cell holds another type, or the rows contradict each other.
        """

    @abstractmethod
    def validate(self, texts: Mapping[str, Any]) -> str | None:
        """Why texts cannot be used; None if they can."""

    @abstractmethod
    def join(self, images: Dataset, image_ids: list[Any] | None, texts: Mapping[str, list[Any]], where: str) -> Dataset:
        """Join fetched columns into rows in the format of the task's `load_split`.

        Args:
            images: The column `image`.
            image_ids: The id of each row; None if the source has none.
            texts: The texts of each row, by the names of `features`.
            where: Name of the split in error messages.

        Raises:
            RecipeError: There are no rows.
        """


@dataclass(frozen=True)
class CaptionTexts(RowTexts):
    """The captions of images, with their prompts and groups.

    Args:
        arguments: The recipe's data keys.
        caption_columns: The columns of captions.
        others: The types of the columns of prompts and groups.
    """

    unit = "image"
    counted = "captions"
    joins_rows = True

    arguments: CaptionDataArguments
    caption_columns: list[str]
    others: dict[str, Any]

    @classmethod
    def choose(cls, features: Features, arguments: CaptionDataArguments, where: str) -> CaptionTexts:
        """Choose the columns among those of a stream.

        Raises:
            RecipeError: A column is missing or has the wrong type.
        """
        caption_columns = choose_caption_columns(features, arguments.caption_column, where)
        if arguments.image_id_column is not None:
            check_column(features, arguments.image_id_column, "image_id_column", where)
        for name, column in arguments.text_columns().items():
            check_text_column(features, name, column, where)
        return cls(arguments, caption_columns, {name: features[name] for name in arguments.text_columns().values()})

    @property
    def id_column(self) -> str | None:  # type: ignore[override]
        """The column of image ids."""
        return self.arguments.image_id_column

    @property
    def columns(self) -> list[str]:
        """The columns of captions, prompts and groups."""
        return [*self.caption_columns, *self.others]

    @property
    def features(self) -> dict[str, Any]:
        """Captions are lists of texts; prompt and group are texts."""
        return {"captions": List(Value("string"))} | dict.fromkeys(self.arguments.text_columns(), Value("string"))

    def read(self, rows: Sequence[Mapping[str, Any]], where: Callable[[int], str]) -> dict[str, Any]:
        """Read the captions of an image, and its prompt and group if images have them."""
        captions: list[str] = []
        for number, row in enumerate(rows):
            cells = [row[column] for column in self.caption_columns]
            try:
                captions += self.arguments.surround(read_captions(cells[0] if len(cells) == 1 else cells))
            except TypeError as error:
                raise RecipeError(f"{where(number)} holds {error}: expected captions as text.") from error
        return {"captions": captions} | self._read_others(rows, where)

    def _read_others(self, rows: Sequence[Mapping[str, Any]], where: Callable[[int], str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, column in self.arguments.text_columns().items():
            texts = [read_text(row[column], self.others[column]) for row in rows]
            image_id = None if self.id_column is None else rows[0][self.id_column]
            check_same_text(name, [image_id] * len(rows), texts, f"{where(0)},")  # type: ignore[list-item]
            found[name] = texts[0]
        return found

    def validate(self, texts: Mapping[str, Any]) -> str | None:
        """Check that there are captions and that none is too long."""
        return validate_captions(texts["captions"])

    def join(self, images: Dataset, image_ids: list[Any] | None, texts: Mapping[str, list[Any]], where: str) -> Dataset:
        """Join into rows of `image`, `image_id` and `captions`."""
        others = {name: texts[name] for name in self.arguments.text_columns()}
        return join_columns(SplitColumns(images, texts["captions"], image_ids, others), where)
