"""The keys of a recipe that say where pictures and texts come from. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blip_recipe.errors import RecipeError

SHAPES = "shapes"
"""`dataset_name` of the embedded data set."""


@dataclass
class DataArguments:
    """Where rows come from, for any task."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub data set id, directory (imagefolder, parquet, webdataset) or annotation file; 'shapes' is the "
            "embedded generator of drawn scenes."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the data set; for 'shapes' the caption style."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on; a sum such as 'train+restval'."})
    eval_split: str | None = field(default=None, metadata={"help": "Split scored while training."})
    test_split: str | None = field(default=None, metadata={"help": "Split scored once, before and after training."})
    image_column: str | None = field(default=None, metadata={"help": "Column of pictures, paths or URLs."})
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column that names the image; rows that share it are one image."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Directory that relative image paths start at."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read training rows from the Hub's shards, or a directory's, while training; other splits, and "
            "max_train_samples, fetch the rows that are used."
        },
    )
    on_bad_image: Literal["fail", "skip"] = field(
        default="fail", metadata={"help": "Stop before training, or go on without the pictures that cannot be read."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first N images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Score the first N images only."})

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}: expected at least 1, or nothing for all.")

    @property
    def is_streamed(self) -> bool:
        """Whether training rows are read while training: those of `datasets`, unless a number of them is asked for."""
        is_table = self.dataset_name != SHAPES and not Path(str(self.dataset_name)).expanduser().is_file()
        return self.streaming and self.max_train_samples is None and is_table

    def splits(self) -> dict[str, tuple[str | None, int | None]]:
        """Name and largest number of rows of the split of each role."""
        return {
            "train": (self.train_split, self.max_train_samples),
            "eval": (self.eval_split, self.max_eval_samples),
            "test": (self.test_split, self.max_eval_samples),
        }


@dataclass
class CaptionDataArguments(DataArguments):
    """Where images with captions come from."""

    caption_column: list[str] | None = field(default=None, metadata={"help": "Column or columns of captions."})
