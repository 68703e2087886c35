"""Kept embeddings change how often a picture is encoded, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import run_checked, run_module
from datasets import Dataset as Rows
from PIL import Image
from safetensors.torch import load_file

from blip_recipe.captioning.data import build_dataset
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainingArguments
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.data.embeddings import EmbeddingStore, picture_key
from blip_recipe.training.caption_collator import CaptionCollator
from blip_recipe.vqa.arguments import VqaDataArguments
from blip_recipe.vqa.data import load_questions

RUN: dict[str, object] = {
    "max_steps": 3,
    "freeze_vision": "true",
    "augmentation": "none",
    "max_train_samples": 24,
    "max_eval_samples": 5,
    "use_cpu": "true",
    "per_device_train_batch_size": 8,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": "false",
    "dataloader_num_workers": 0,
}


def command(output_dir: Path, recipe: str = "shapes_tiny", **changes: object) -> list[str]:
    keys = RUN | changes | {"output_dir": output_dir}
    return ["blip_recipe.finetune", f"recipes/{recipe}.json", *(f"--{key}={value}" for key, value in keys.items())]


def files(cache: Path) -> set[Path]:
    return {path for path in cache.rglob("*") if path.is_file()}


def test_a_run_on_kept_embeddings_is_the_run_on_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(cache))
    run_checked(*command(tmp_path / "pictures"))
    assert not files(cache)
    run_checked(*command(tmp_path / "kept", cache_image_embeds="true"))
    first = files(cache)
    assert len(first) == 24 + 2 * 5
    # Processes share the work of encoding, and find what the run before has kept.
    again = command(tmp_path / "again", cache_image_embeds="true", per_device_train_batch_size=4)
    run_checked(*again, processes=2)
    assert files(cache) == first
    for name in ("model.safetensors", "predictions.jsonl"):
        assert (tmp_path / "pictures" / name).read_bytes() == (tmp_path / "kept" / name).read_bytes(), name
    assert (tmp_path / "pictures/predictions.jsonl").read_text() == (tmp_path / "again/predictions.jsonl").read_text()


def test_questions_are_trained_on_kept_embeddings_as_on_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(cache))
    run_checked(*command(tmp_path / "pictures", "shapes_vqa"))
    run_checked(*command(tmp_path / "kept", "shapes_vqa", cache_image_embeds="true"))
    # One file for each picture, however many questions there are about it.
    data = VqaDataArguments(dataset_name="shapes")
    splits = {"train": 24, "validation": 5, "test": 5}
    pictures = [set(load_questions(data, name, max_samples=rows)["image_id"]) for name, rows in splits.items()]
    assert len(files(cache)) == sum(map(len, pictures)) < sum(splits.values())
    # Batches of other sizes are encoded, which differ in the last bits.
    pictures_weights, kept_weights = (load_file(tmp_path / name / "model.safetensors") for name in ("pictures", "kept"))
    torch.testing.assert_close(kept_weights, pictures_weights, atol=1e-5, rtol=1e-5)
    said = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("pictures", "kept")]
    assert said[0] == said[1]


def test_pairs_are_trained_and_ranked_on_kept_embeddings_as_on_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the momentum encoders too, whose frozen image encoder is the model's."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(cache))
    keys = {"queue_size": 16, "rerank_top_k": 3, "save_strategy": "steps", "save_steps": 3}
    run_checked(*command(tmp_path / "pictures", "shapes_retrieval", **keys))
    assert not files(cache)
    run_checked(*command(tmp_path / "kept", "shapes_retrieval", **keys, cache_image_embeds="true"))
    assert len(files(cache)) == 24 + 2 * 5
    for name in ("model.safetensors", "momentum.safetensors"):
        pictures, kept = (load_file(tmp_path / run / "checkpoint-3" / name) for run in ("pictures", "kept"))
        torch.testing.assert_close(kept, pictures, atol=1e-5, rtol=1e-5)
    assert len(set(pictures["id_queue"].tolist())) == 16
    lines = [
        list(map(json.loads, (tmp_path / run / "predictions.jsonl").read_text().splitlines()))
        for run in ("pictures", "kept")
    ]
    for one, other in zip(*lines, strict=True):
        assert other["text_scores"] == pytest.approx(one["text_scores"], abs=2e-4)
        assert other | {"text_scores": None} == one | {"text_scores": None}


@pytest.mark.parametrize(
    ("key", "value"),
    [("freeze_vision", "false"), ("augmentation", "blip")],
)
def test_pictures_that_would_change_are_not_kept(tmp_path: Path, key: str, value: str) -> None:
    result = run_module(*command(tmp_path / "run", cache_image_embeds="true", **{key: value}))
    assert result.returncode == 2
    assert key in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_kept_pictures_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(tmp_path))
    model, processor = build_tiny_captioner(["a"])
    rows = Rows.from_dict({"image": [{"bytes": b"no picture", "path": None}], "image_id": [0], "captions": [["a"]]})
    args = CaptionTrainingArguments(str(tmp_path), use_cpu=True, augmentation="none", cache_image_embeds=True)
    dataset = build_dataset(rows, args, processor, training=True)
    assert isinstance(dataset, CaptionDataset)
    store = EmbeddingStore(model.vision_model, processor.image_processor, torch.float32)
    embeds = torch.randn(store.shape)
    store.save("0123", embeds)
    dataset.use_embeddings(store, ["0123"])
    batch = CaptionCollator(processor)([dataset[0]])
    assert torch.equal(batch["image_embeds"][0], embeds)
    assert "pixel_values" not in batch


def test_half_a_file_is_no_kept_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(tmp_path))
    model, processor = build_tiny_captioner(["a"])
    store = EmbeddingStore(model.vision_model, processor.image_processor, torch.float32)
    store.save("0123", torch.randn(store.shape))
    assert store.holds("0123")
    store.path("0123").write_bytes(b"")
    assert not store.holds("0123")


def test_another_encoder_or_preprocessing_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model, processor = build_tiny_captioner(["a"])
    stores = [EmbeddingStore(model.vision_model, processor.image_processor, torch.float32)]
    stores.append(EmbeddingStore(model.vision_model, processor.image_processor, torch.bfloat16))
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    stores.append(EmbeddingStore(model.vision_model, processor.image_processor, torch.float32))
    model.vision_model.post_layernorm.bias.data[0] += 1.0
    stores.append(EmbeddingStore(model.vision_model, processor.image_processor, torch.float32))
    assert len({store.folder for store in stores}) == len(stores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setenv("BLIP_RECIPE_CACHE", str(tmp_path))
    model, processor = build_tiny_captioner(["a"])
    store = EmbeddingStore(model.vision_model, processor.image_processor, dtype)
    embeds = torch.randn(store.shape).to(dtype)
    store.save("0123", embeds)
    assert torch.equal(store.load("0123"), embeds)
    assert store.path("0123").stat().st_size == store.bytes_per_image


def test_a_picture_is_known_by_its_content(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one.png", "same.png", "other.png"))
    for path, colour in ((one, "red"), (same, "red"), (other, "blue")):
        Image.new("RGB", (8, 6), colour).save(path)
    assert picture_key(str(one)) == picture_key(same) == picture_key({"bytes": one.read_bytes(), "path": None})
    assert picture_key(str(one)) != picture_key(str(other))
    assert picture_key(Image.new("RGB", (8, 6), "red")) != picture_key(Image.new("RGB", (6, 8), "red"))
