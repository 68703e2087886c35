"""Recipe keys for the training data. This module does not import torch, so `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blip_recipe.data.mixture import Part, read_mixture
from blip_recipe.errors import RecipeError

SHAPES = "shapes"
"""`dataset_name` of the embedded data set."""


FRACTION_KEYS = {"eval": "validation_fraction", "test": "test_fraction"}
"""The key of the share of training images that each role takes."""


@dataclass
class DataArguments:
    """The data set of a run, for any task."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub data set id, folder of pictures with texts, or file (CSV, JSON, parquet, zip). 'shapes' is "
            "the embedded generator of drawn scenes."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the data set. For 'shapes': the caption style."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    train_split: str = field(
        default="train", metadata={"help": "Training split, a slice such as 'train[:1000]', or a sum of these."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Split to score during training, or by `evaluate`."})
    test_split: str | None = field(
        default=None, metadata={"help": "Split to score before and after training; default: eval_split."}
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the training images to hold out for evaluation, instead of eval_split. A hash of each "
            "picture decides, so images stay where they are if you add more data later."
        },
    )
    test_fraction: float | None = field(
        default=None,
        metadata={"help": "Share of the training images to hold out as test images, instead of test_split."},
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the hash that decides which images are held out."})
    allow_shared_images: bool = field(
        default=False,
        metadata={"help": "Whether training, evaluation and test may share images; the model card then says so."},
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of pictures, paths or URLs."})
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column of image ids. Rows with the same id are one image."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Base directory of relative image paths."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read training rows shard by shard from the Hub or a directory while training. The other splits, "
            "and the training split with max_train_samples, are read before training, as far as they are used."
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
        for role, share in self.held_out().items():
            key, split = FRACTION_KEYS[role], getattr(self, f"{role}_split")
            if not 0 < share < 1:
                raise RecipeError(f"{key} is {share}: expected more than 0 and less than 1, or null.")
            if split is not None:
                raise RecipeError(
                    f"{key} and {role}_split ({split!r}) are both given: use only one of them. Set the other to null."
                )
        if sum(self.held_out().values()) >= 1:
            raise RecipeError(
                f"validation_fraction {self.validation_fraction} and test_fraction {self.test_fraction} leave no "
                "training images: expected a sum below 1."
            )

    @property
    def mixture(self) -> list[Part]:
        """The data sets that are mixed for training; none for most tasks."""
        return []

    @property
    def is_streamed(self) -> bool:
        """Whether training rows are streamed; never for 'shapes', annotation files or with `max_train_samples`."""
        is_table = self.dataset_name != SHAPES and not Path(str(self.dataset_name)).expanduser().is_file()
        return self.streaming and self.max_train_samples is None and is_table

    def held_out(self) -> dict[str, float]:
        """The share of the training images that is held out for a role (`eval`, `test`)."""
        shares = {role: getattr(self, key) for role, key in FRACTION_KEYS.items()}
        return {role: share for role, share in shares.items() if share is not None}

    def has_split(self, role: str) -> bool:
        """Whether there are images for a role: a split of their own, or images held out of the training split."""
        return self.splits()[role][0] is not None

    def splits(self) -> dict[str, tuple[str | None, int | None]]:
        """The split's name and its maximum number of images, by role (`train`, `eval`, `test`)."""
        named = {"eval": "validation", "test": "test"}
        names = {"eval": self.eval_split, "test": self.test_split} | {role: named[role] for role in self.held_out()}
        return {
            "train": (self.train_split, self.max_train_samples),
            "eval": (names["eval"], self.max_eval_samples),
            "test": (names["test"], self.max_eval_samples),
        }


@dataclass
class CaptionDataArguments(DataArguments):
    """The data set of a captioning run."""

    dataset_mixture: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Data sets to train on instead of train_split. The weight says how often an epoch uses each row: "
            '{"me/web": 1.0, "me/human": 0.5}. Instead of a weight, give an object with weight and data keys.'
        },
    )
    caption_column: list[str] | None = field(default=None, metadata={"help": "Column (or columns) of captions."})
    prompt_column: str | None = field(
        default=None,
        metadata={"help": "Column with a prompt for each image, which its captions start with; replaces prompt."},
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Column with the group of each image; each group is also scored by itself."},
    )
    caption_lines: bool = field(
        default=False,
        metadata={
            "help": "Whether each line of a text file beside a picture is a caption. By default, a file is one caption."
        },
    )
    caption_prefix: str = field(
        default="", metadata={"help": "Text to put before every caption of the data, such as a trigger word 'ohwx, '."}
    )
    caption_suffix: str = field(default="", metadata={"help": "Text to put after every caption of the data."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.dataset_mixture, str):
            self.dataset_mixture = self.dataset_mixture if self.dataset_mixture.strip() else None
        parts = self.mixture
        if not parts:
            return
        for key in ("streaming", "validation_fraction", "test_fraction", "max_train_samples", "prompt_column"):
            if getattr(self, key):
                raise RecipeError(
                    f"dataset_mixture and {key} are both given, but do not work together: leave one of them out. "
                    "train_split and max_train_samples can be keys of a data set of the mixture."
                )
        if self.dataset_name is None:
            self.dataset_name = parts[0].keys["dataset_name"]

    @property
    def mixture(self) -> list[Part]:
        """The data sets that are mixed for training; none if `train_split` is trained on alone."""
        return read_mixture(self.dataset_mixture)

    def arguments_of(self, part: Part) -> CaptionDataArguments:
        """The data keys of a data set of the mixture."""
        return CaptionDataArguments(**part.keys, on_bad_image=self.on_bad_image)

    def text_columns(self) -> dict[str, str]:
        """The columns of further texts, by their name in rows: `prompt` and `group`. The keys end in `_column`."""
        named = {"prompt": self.prompt_column, "group": self.group_column}
        return {name: column for name, column in named.items() if column is not None}

    def surround(self, captions: list[str]) -> list[str]:
        """Put `caption_prefix` and `caption_suffix` around captions."""
        return [f"{self.caption_prefix}{caption}{self.caption_suffix}" for caption in captions]
