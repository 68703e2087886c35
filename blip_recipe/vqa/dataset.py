"""Questions as a trainer sees them: pictures opened and augmented, questions cleaned.

As `data/dataset.py`: every random choice comes from a generator seeded with (seed, epoch, row).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from blip_recipe.data.augmentation import augment
from blip_recipe.data.pixels import read_pixels
from blip_recipe.data.resized_cache import cache_folder, resize_beforehand
from blip_recipe.vqa.data import normalize_question

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from transformers import ProcessorMixin

    from blip_recipe.recipe.parsing import DataArguments


class QuestionDataset(torch.utils.data.Dataset):
    """Rows of `load_questions` as `{"row", "image_key", "image", "question", "answers"}`.

    Args:
        rows: `image`, `image_id`, `question_id`, `question`, `answers`; they stay as they are written.
        image_size: Side of an augmented picture in pixels.
        normalize: Whether questions are cleaned as the original's (`normalize_question`).
        augmentation: `"blip"` is the original's (`augment`), `"none"` leaves pictures in their own size.
        seed: What random choices start from.
        resized: Files to read pictures from, by row number (`resize_beforehand`), in place of those in `rows`.
    """

    def __init__(
        self,
        rows: Dataset,
        *,
        image_size: int,
        normalize: bool,
        augmentation: Literal["blip", "none"],
        seed: int,
        resized: Mapping[int, str] | None = None,
    ) -> None:
        self.rows = rows
        self.image_size, self.normalize, self.augmentation, self.seed = image_size, normalize, augmentation, seed
        self.resized = resized or {}
        self._texts = rows.select_columns(["image_id", "question", "answers"])
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw the choices of `epoch` from now on, in the processes of workers too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Row number, picture (uint8 `(3, height, width)`; augmented: `image_size` square), question and answers.

        Raises:
            BadImageError: The picture cannot be read.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """As `__getitem__` for the rows of a batch, of which a picture is read once, augmented as for its first row."""
        texts = self._texts[rows]
        images: dict[Any, torch.Tensor] = {}
        for row, key in zip(rows, texts["image_id"], strict=True):
            if key not in images:
                images[key] = self._read(row)
        return [
            {
                "row": row,
                "image_key": key,
                "image": images[key],
                "question": normalize_question(question) if self.normalize else question,
                "answers": answers,
            }
            for row, key, question, answers in zip(rows, *texts.values(), strict=True)
        ]

    def _read(self, row: int) -> torch.Tensor:
        # Megapixels that are not looked at are not taken from the table either.
        image = read_pixels(self.resized.get(row) or self.rows[row]["image"])
        if self.augmentation == "blip":
            image = augment(image, self.image_size, np.random.default_rng([self.seed, int(self._epoch), row]))
        return image


def question_datasets(
    splits: Mapping[str, Dataset], arguments: DataArguments, processor: ProcessorMixin, seed: int
) -> dict[str, QuestionDataset]:
    """The splits by role for a trainer: only `train` is augmented, and read from the recipe's `image_cache`.

    Raises:
        RecipeError: Pictures cannot be kept there.
    """
    image_size = processor.image_processor.size["height"]
    folder = cache_folder(arguments.image_cache)
    return {
        role: QuestionDataset(
            rows,
            image_size=image_size,
            normalize=arguments.normalize_captions,
            augmentation=arguments.augmentation if role == "train" else "none",
            seed=seed,
            resized=resize_beforehand(rows, image_size, folder) if folder and role == "train" else None,
        )
        for role, rows in splits.items()
    }
