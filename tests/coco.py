"""Stand-ins for the model and data sets that the recipes name, published on the loopback Hub in their real shape."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from hub_server import HubServer
from PIL import Image, ImageDraw

from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.data.resources import resource_folder
from blip_recipe.models.processors import save_processor
from blip_recipe.recipe.arguments import TASKS, TaskName
from blip_recipe.recipe.tasks import find_task

BASE_MODEL = "Salesforce/blip-image-captioning-base"
SPLITS = {"train": 12, "restval": 4, "val": 5, "test": 6}
COLOURS = ("red", "green", "blue", "black", "orange", "purple")
LANGUAGES = ("en", "de", "fr")


def publish_base_model(hub: HubServer, folder: Path) -> None:
    """A tiny BLIP with the name of the real one."""
    torch.manual_seed(0)
    captions = [caption for number in range(40) for caption in captions_of(number)]
    model, processor = build_tiny_captioner(["a picture of , .", *captions])
    model.save_pretrained(folder)
    save_processor(processor, folder)
    hub.publish_model(BASE_MODEL, folder)


def publish_other_bases(hub: HubServer, folder: Path) -> None:
    """Tiny models under the names that recipes of the other tasks begin with."""
    names: list[TaskName] = ["vqa", "retrieval"]
    for name in names:
        model, processor = find_task(name).build_tiny(["a picture of a thing ?"], None)
        model.save_pretrained(folder / name)
        save_processor(processor, folder / name)
        hub.publish_model(TASKS[name].model().model_name_or_path, folder / name)


def publish_coco(hub: HubServer, folder: Path, splits: Mapping[str, int] = SPLITS) -> None:
    """COCO's columns and splits as `coco_*.json` expect them, at the revision that they pin."""
    files: dict[str, Any] = {}
    number = 0
    for split, size in splits.items():
        rows = [coco_row(number + row) for row in range(size)]
        number += size
        path = folder / f"{split}-00000-of-00001.parquet"
        features = datasets.Features(
            {
                "cocoid": datasets.Value("int64"),
                "filename": datasets.Value("string"),
                **{language: datasets.List(datasets.Value("string")) for language in LANGUAGES},
                "image": datasets.Image(),
            }
        )
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
        files[f"data/{path.name}"] = path
    recipe = json.loads((resource_folder("recipes") / "coco_lora.json").read_text())
    name, pinned = recipe["dataset_name"], recipe["dataset_revision"]
    commit = hub.publish_dataset(name, files)
    # The pinned revision is a commit of the real data set: give our commit its id.
    repository = hub.repositories["dataset", name]
    repository.commits[pinned] = dataclasses.replace(repository.commits[commit], oid=pinned)
    repository.branches["main"] = pinned


def publish_flickr8k(hub: HubServer, folder: Path) -> None:
    """Flickr8k's columns: one a caption."""
    files: dict[str, Any] = {}
    for first, split in enumerate(("train", "validation", "test")):
        rows = [
            {"image": picture(6 * first + row), **{f"caption_{i}": captions_of(6 * first + row)[i] for i in range(5)}}
            for row in range(6)
        ]
        path = folder / f"{split}.parquet"
        datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(path)
        files[f"data/{split}-00000-of-00001.parquet"] = path
    hub.publish_dataset("jxie/flickr8k", files)


def publish_flickr30k(hub: HubServer, folder: Path, splits: Mapping[str, int]) -> None:
    """Flickr30k's columns, with Karpathy's splits, as `flickr30k_retrieval.json` expects them."""
    texts = datasets.List(datasets.Value("string"))
    names = {name: datasets.Value("string") for name in ("split", "img_id", "filename")}
    features = datasets.Features({"image": datasets.Image(), "caption": texts, "sentids": texts, **names})
    files: dict[str, Any] = {}
    number = 0
    for split, size in splits.items():
        rows = [flickr30k_row(number + row, split) for row in range(size)]
        number += size
        path = folder / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
        files[f"data/{path.name}"] = path
    recipe = json.loads((resource_folder("recipes") / "flickr30k_retrieval.json").read_text())
    hub.publish_dataset(recipe["dataset_name"], files)


def flickr30k_row(number: int, split: str) -> dict[str, Any]:
    """One image with five captions."""
    return {
        "image": picture(number),
        "caption": captions_of(number),
        "sentids": [str(5 * number + each) for each in range(5)],
        "split": split,
        "img_id": str(number),
        "filename": f"{1000092795 + number}.jpg",
    }


def publish_empty_dataset(hub: HubServer, repo_id: str, folder: Path) -> None:
    """COCO's splits without a row."""
    rows = datasets.Dataset.from_list([coco_row(0)]).cast_column("image", datasets.Image()).select([])
    rows.to_parquet(folder / "empty.parquet")
    hub.publish_dataset(repo_id, {f"data/{split}-00000-of-00001.parquet": folder / "empty.parquet" for split in SPLITS})


def write_image_folder(folder: Path) -> Path:
    """An imagefolder with the three splits of `my_folder.json`."""
    for first, split in enumerate(("train", "validation", "test")):
        (folder / split).mkdir(parents=True)
        lines = []
        for row in range(4):
            number = 4 * first + row
            (folder / split / f"{number:04}.png").write_bytes(picture(number)["bytes"])
            lines.append(json.dumps({"file_name": f"{number:04}.png", "captions": captions_of(number)}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def coco_row(number: int) -> dict[str, Any]:
    """One image with five English captions and the same in other languages."""
    captions = captions_of(number)
    return {
        "cocoid": 1000 + number,
        "filename": f"COCO_val2014_{1000 + number:012}.jpg",
        **{
            language: [caption if language == "en" else f"{language} {caption}" for caption in captions]
            for language in LANGUAGES
        },
        "image": picture(number),
    }


def captions_of(number: int) -> list[str]:
    """Five captions as people write them: capitals, full stops, a trailing space."""
    colour, place = COLOURS[number % len(COLOURS)], ("left", "right")[number // len(COLOURS) % 2]
    return [
        f"A {colour} square on the {place}.",
        f"There is a {colour} square on the {place} side ",
        f"a square that is {colour}, on the {place}",
        f"On the {place} stands a {colour} square.",
        f"A picture with one {colour} square",
    ]


def picture(number: int) -> dict[str, Any]:
    """A drawn square, which differs for each number, as the struct of an image column."""
    image = Image.new("RGB", (80, 64), "white")
    left = 8 if number // len(COLOURS) % 2 == 0 else 48
    top = 20 + number // (2 * len(COLOURS))
    ImageDraw.Draw(image).rectangle([left, top, left + 24, top + 24], fill=COLOURS[number % len(COLOURS)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
