"""Recipes of all tasks, run word for word on stand-ins for the models and data that they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coco import BASE_MODEL, captions_of, publish_coco, publish_flickr30k
from commands import run_checked
from hub_server import HubServer
from recipe_data import QUESTIONS, publish_tiny, write_nocaps, write_vqav2

from blip_recipe.data.resources import resource_folder

SPLITS = {"train": 28, "restval": 6, "val": 5, "test": 6}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("published")
    texts = ["a picture of , .", *(caption for number in range(12) for caption in captions_of(number))]
    with HubServer() as server:
        publish_tiny(server, "captioning", BASE_MODEL, texts, folder / "captioner")
        publish_tiny(server, "captioning", "Salesforce/blip-image-captioning-large", texts, folder / "large")
        for name in ("Salesforce/blip-itm-base-coco", "Salesforce/blip-itm-large-coco"):
            publish_tiny(server, "retrieval", name, texts, folder / name.rpartition("/")[2])
        publish_tiny(server, "vqa", "Salesforce/blip-vqa-base", [*texts, *QUESTIONS, "yes no 1"], folder / "vqa", 480)
        for part in ("coco", "flickr30k"):
            (folder / part).mkdir()
        publish_coco(server, folder / "coco", SPLITS)
        publish_flickr30k(server, folder / "flickr30k", {"train": 34, "val": 5, "test": 6})
        yield server


def results_of(place: Path, recipe: str) -> dict[str, Any]:
    return json.loads((place / "outputs" / recipe / "all_results.json").read_text())


@pytest.mark.parametrize("recipe", ["coco_retrieval", "flickr30k_retrieval"])
def test_retrieval(recipe: str, hub: HubServer, tmp_path: Path) -> None:
    done = run_checked("blip_recipe.finetune", f"recipes/{recipe}.json", cwd=tmp_path, env=hub.environment())
    print(done.stderr[-3000:], results_of(tmp_path, recipe))


def test_vqav2(hub: HubServer, tmp_path: Path) -> None:
    write_vqav2(tmp_path / "data", "train2014", range(12))
    write_vqav2(tmp_path / "data", "val2014", range(12, 18))
    done = run_checked("blip_recipe.finetune", "recipes/vqav2.json", cwd=tmp_path, env=hub.environment())
    print(done.stderr[-3000:], results_of(tmp_path, "vqav2"))


def test_nocaps(hub: HubServer, tmp_path: Path) -> None:
    write_nocaps(tmp_path / "data" / "nocaps", 12)
    done = run_checked("blip_recipe.evaluate", "recipes/nocaps.json", cwd=tmp_path, env=hub.environment())
    print(done.stdout, done.stderr[-3000:])
    print((tmp_path / "outputs/evaluate/predictions.jsonl").read_text()[:3000])
