"""Recipe keys for the training data. This module does not import torch, so `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blip_recipe.errors import RecipeError

SHAPES = "shapes"
"""`dataset_name` of the embedded data set."""


@dataclass
class DataArguments:
    """The data set of a run, for any task."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub data set id, directory (imagefolder, parquet, webdataset) or annotation file. 'shapes' is the "
            "embedded generator of drawn scenes."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the data set. For 'shapes': the caption style."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    train_split: str = field(default="train", metadata={"help": "Training split, or a sum such as 'train+restval'."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on during training."})
    test_split: str | None = field(default=None, metadata={"help": "Split to score before and after training."})
    image_column: str | None = field(default=None, metadata={"help": "Column of pictures, paths or URLs."})
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column of image ids. Rows with the same id are one image."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Base directory of relative image paths."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read training rows shard by shard from the Hub or a directory while training. The other splits, "
            "and the training split with max_train_samples, are fetched first, and only the rows that are used."
        },
    )
    on_bad_image: Literal["fail", "skip"] = field(
        default="fail", metadata={"help": "'fail' stops at pictures that cannot be read, 'skip' leaves them out."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train only on the first N images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Score only the first N images."})

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}: expected at least 1, or null for all.")

    @property
    def is_streamed(self) -> bool:
        """Whether training rows are streamed; never for 'shapes', annotation files or with `max_train_samples`."""
        is_table = self.dataset_name != SHAPES and not Path(str(self.dataset_name)).expanduser().is_file()
        return self.streaming and self.max_train_samples is None and is_table

    def splits(self) -> dict[str, tuple[str | None, int | None]]:
        """The split's name and its maximum number of images, by role (`train`, `eval`, `test`)."""
        return {
            "train": (self.train_split, self.max_train_samples),
            "eval": (self.eval_split, self.max_eval_samples),
            "test": (self.test_split, self.max_eval_samples),
        }


@dataclass
class CaptionDataArguments(DataArguments):
    """The data set of a captioning run."""

    caption_column: list[str] | None = field(default=None, metadata={"help": "Column (or columns) of captions."})
