"""What a trainer sees of a row depends on seed, epoch and row alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from commands import CHECKOUT
from datasets import Dataset
from PIL import Image

from blip_recipe.captioning.data import build_dataset
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainingArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.data.images import BadImageError, open_image
from blip_recipe.data.load import load_split
from blip_recipe.data.shapes import SIZE


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return load_split(CaptionDataArguments(dataset_name="shapes"), "validation", max_samples=8)


def make_dataset(rows: Dataset, **options: Any) -> CaptionDataset:
    chosen: dict[str, Any] = {
        "image_size": 32,
        "captions_per_image": 2,
        "normalize_captions": True,
        "augmentation": "blip",
        "seed": 3,
        **options,
    }
    return CaptionDataset(rows, **chosen)


def content(item: dict[str, Any]) -> tuple[int, list[str], bytes]:
    return item["row"], item["captions"], item["image"].numpy().tobytes()


def read_all(dataset: CaptionDataset) -> list[tuple[int, list[str], bytes]]:
    return [content(dataset[row]) for row in range(len(dataset))]


def test_a_row_is_its_number_its_picture_and_its_captions(rows: Dataset) -> None:
    item = make_dataset(rows, captions_per_image=None, augmentation="none")[3]
    assert item["row"] == 3
    assert item["captions"] == rows[3]["captions"]
    assert item["image"].dtype == torch.uint8
    assert (item["image"].permute(1, 2, 0).numpy() == np.asarray(open_image(rows[3]["image"]))).all()


def test_augmented_pictures_have_the_models_size(rows: Dataset) -> None:
    assert make_dataset(rows)[0]["image"].shape == (3, 32, 32)
    assert make_dataset(rows, augmentation="none")[0]["image"].shape == (3, SIZE, SIZE)


def test_choices_follow_seed_epoch_and_row(rows: Dataset) -> None:
    dataset = make_dataset(rows)
    first = read_all(dataset)
    assert read_all(dataset) == first
    dataset.set_epoch(1)
    second = read_all(dataset)
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert read_all(make_dataset(rows, seed=4)) != first
    dataset.set_epoch(0)
    assert [content(dataset[row]) for row in reversed(range(8))] == first[::-1]


def test_captions_are_drawn_without_replacement_and_all_in_turn(rows: Dataset) -> None:
    dataset = make_dataset(rows, augmentation="none")
    drawn = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        captions = dataset[0]["captions"]
        assert len(set(captions)) == 2
        drawn |= set(captions)
    assert drawn == set(rows[0]["captions"])


@pytest.mark.parametrize("asked", [None, 5, 9])
def test_an_image_with_too_few_captions_gives_all(rows: Dataset, asked: int | None) -> None:
    assert make_dataset(rows, captions_per_image=asked)[0]["captions"] == rows[0]["captions"]


def test_captions_are_cleaned_only_when_asked_and_never_in_the_rows() -> None:
    raw = "A Dog (brown)."
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    rows = Dataset.from_dict({"image": [image.tolist()], "image_id": [0], "captions": [[raw]]})
    rows = rows.with_format(None).map(lambda row: {"image": {"bytes": encode(image), "path": None}})
    assert make_dataset(rows)[0]["captions"] == ["a dog brown"]
    dataset = make_dataset(rows, normalize_captions=False)
    assert dataset[0]["captions"] == dataset.rows[0]["captions"] == [raw]


def encode(pixels: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_that_live_on_see_the_new_epoch(rows: Dataset, method: Literal["fork", "spawn"]) -> None:
    dataset = make_dataset(rows)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=3,
        num_workers=2 if method == "fork" else 1,
        persistent_workers=True,
        collate_fn=list,
        multiprocessing_context=method,
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert [content(item) for batch in loader for item in batch] == read_all(dataset)


def test_accelerate_tells_the_epoch(rows: Dataset) -> None:
    dataset = make_dataset(rows)
    loader = Accelerator(cpu=True).prepare(torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=list))
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen.append([content(item) for batch in loader for item in batch])
    assert seen[0] != seen[1]
    dataset.set_epoch(1)
    assert seen[1] == read_all(dataset)


def test_only_training_is_augmented_and_draws_captions(rows: Dataset, tmp_path: Path) -> None:
    processor = build_tiny_captioner(["a"], 48)[1]
    args = CaptionTrainingArguments(str(tmp_path), use_cpu=True, augmentation="blip", captions_per_image=1)
    train, test = (build_dataset(rows, args, processor, training=training)[0] for training in (True, False))
    assert (train["image"].shape, len(train["captions"])) == ((3, 48, 48), 1)
    assert (test["image"].shape, len(test["captions"])) == ((3, SIZE, SIZE), 5)


def test_a_picture_that_breaks_while_training_is_named(rows: Dataset) -> None:
    bad = Dataset.from_dict({"image": [{"bytes": None, "path": "gone.jpg"}], "image_id": [0], "captions": [["a"]]})
    loader = torch.utils.data.DataLoader(make_dataset(bad), num_workers=1, collate_fn=list)
    with pytest.raises(BadImageError, match=r"gone\.jpg"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("name", "never"), [("images", "datasets torch transformers"), ("load", "torch transformers.models")]
)
def test_what_is_not_needed_is_not_imported(name: str, never: str) -> None:
    script = f"import sys, blip_recipe.data.{name}; print([m for m in {never.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.strip() == "[]"
