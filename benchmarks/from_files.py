"""Train from JPEG files with this package and with a plain transformers script, for the benchmark of GPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from torchvision import transforms
from transformers import (
    BlipForConditionalGeneration,
    BlipProcessor,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    default_data_collator,
)

from benchmarks.loading import made_photograph, open_with_pillow
from benchmarks.workload import CAPTION_LENGTHS, IMAGE_SIZE, caption_texts
from blip_recipe import CaptionTrainer, CaptionTrainingArguments
from blip_recipe.data.augmentation import CROP_SCALE
from blip_recipe.models.text import IGNORED

CAPTIONS = len(CAPTION_LENGTHS)
Row = dict[str, Any]


def ours_from_files(folder: Path, contents: list[bytes], images: int, arguments: Row, steps: int) -> Any:
    """A `CaptionTrainer` on rows of a JPEG and five captions, with all of BLIP's augmentation.

    Args:
        folder: A model with its processor.
        contents: Encoded pictures. They are used again until there are enough rows.
        images: Images per step.
        arguments: Arguments of the trainer.
        steps: The number of steps that the rows are enough for.
    """
    texts = caption_texts(len(contents))
    number = images * steps
    rows = Dataset.from_dict(
        {
            # Rows of one picture would become one row of more captions.
            "image_id": list(range(number)),
            "image": [{"bytes": each, "path": None} for each in again(contents, number)],
            "captions": list(again(texts, number)),
        }
    ).cast_column("image", ImageFeature(decode=False))
    return CaptionTrainer(
        str(folder),
        CaptionTrainingArguments(
            per_device_train_batch_size=images, captions_per_image=CAPTIONS, eval_strategy="no", **arguments
        ),
        rows,
        processing_class=BlipProcessor.from_pretrained(folder),
    )


def stock_from_files(folder: Path, contents: list[bytes], images: int, arguments: Row, steps: int) -> Any:
    """A plain script's trainer: a row is a picture, cropped and flipped by torchvision, with one caption.

    It takes the arguments of `ours_from_files`.
    """
    return Seq2SeqTrainer(
        model=BlipForConditionalGeneration.from_pretrained(folder),
        args=Seq2SeqTrainingArguments(
            per_device_train_batch_size=images * CAPTIONS, remove_unused_columns=False, **arguments
        ),
        train_dataset=StockRows(contents, BlipProcessor.from_pretrained(folder), images * steps * CAPTIONS),
        data_collator=default_data_collator,
    )


class StockRows(torch.utils.data.Dataset[Row]):
    """Rows of a picture and one caption, prepared as in common scripts."""

    def __init__(self, contents: list[bytes], processor: BlipProcessor, rows: int) -> None:
        self.contents, self.processor, self.rows = contents, processor, rows
        self.texts = caption_texts(len(contents))
        bicubic = transforms.InterpolationMode.BICUBIC
        self.crop = transforms.Compose(
            [
                transforms.RandomResizedCrop(IMAGE_SIZE, scale=CROP_SCALE, interpolation=bicubic),
                transforms.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Row:
        picture = row // CAPTIONS % len(self.contents)
        encoding = self.processor(
            images=self.crop(open_with_pillow(self.contents[picture])),
            text=self.texts[picture][row % CAPTIONS],
            padding="max_length",
            max_length=max(CAPTION_LENGTHS),
            return_tensors="pt",
        )
        encoding = {name: values[0] for name, values in encoding.items()}
        return encoding | {"labels": encoding["input_ids"].masked_fill(encoding["attention_mask"] == 0, IGNORED)}


class StepEnds(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the device and look at the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def photographs(number: int) -> list[bytes]:
    """JPEGs of COCO's size."""
    return [made_photograph(seed, 640, 480) for seed in range(number)]


def again(items: list[Any], number: int) -> Iterator[Any]:
    """`number` items, the same ones again and again."""
    return (items[place % len(items)] for place in islice(count(), number))
