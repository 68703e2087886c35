"""The task `pretrain` from recipe to scores: what it leaves, what it learns, and that it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_checked
from huggingface_hub import ModelCard
from PIL import Image
from retrievers import load_exactly
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from blip_recipe import load_captioner
from blip_recipe.data.shapes import draw_scene, make_scenes
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main
from blip_recipe.models.captioner import generate_captions

KEYS: dict[str, Any] = {
    "max_train_samples": 48,
    "max_eval_samples": 10,
    "max_steps": 6,
    "eval_steps": 3,
    "save_steps": 3,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 4,
    "queue_size": 20,
    "warmup_steps": 1,
    "logging_steps": 2,
    "dataloader_num_workers": 0,
    "metrics": "exact_match",
    "use_cpu": "true",
}


def finetune(output_dir: Path, *, processes: int = 1, **changes: object) -> Path:
    keys = KEYS | {"output_dir": output_dir} | changes
    arguments = [f"--{key}={value}" for key, value in keys.items()]
    run_checked("blip_recipe.finetune", "recipes/shapes_pretrain.json", *arguments, processes=processes, timeout=900)
    return output_dir


def results(output_dir: Path) -> dict[str, float]:
    return json.loads((output_dir / "all_results.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(tmp_path_factory.mktemp("pretrain") / "whole")


def test_a_run_leaves_a_stock_captioner_a_stock_matcher_scores_and_a_card(run: Path) -> None:
    for folder in (run, run / "checkpoint-6"):
        load_exactly(BlipForConditionalGeneration, folder)
        matcher = load_exactly(BlipForImageTextRetrieval, folder / "matcher")
        assert matcher.config.logit_scale_init_value != pytest.approx(2.6592, abs=1e-4)
    found = results(run)
    assert {"baseline_exact_match", "test_exact_match", "test_loss"} <= found.keys()
    logs = json.loads((run / "trainer_state.json").read_text())["log_history"]
    for entry in (entry for entry in logs if "loss" in entry):
        assert entry["loss"] == pytest.approx(sum(entry[f"{name}_loss"] for name in ("itc", "itm", "lm")), abs=0.05)
    text = ModelCard.load(run / "README.md").text
    assert "ITC + ITM + language modelling" in text
    assert 'subfolder="matcher"' in text


def test_the_saved_models_serve_the_commands(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    pictures = [draw_scene(scene) for scene in make_scenes("test")[:10]]
    model, processor, settings = load_captioner(str(run))
    pixels = processor.image_processor(pictures, return_tensors="pt").pixel_values
    captions = generate_captions(model, processor.tokenizer, pixels, **settings.generate_kwargs())
    assert captions == [line["caption"] for line in lines]
    pictures[0].save(tmp_path / "scene.png")
    text = lines[0]["references"][0]
    out = run_checked("blip_recipe.match", run / "matcher", tmp_path / "scene.png", text).stdout
    stock = BlipForImageTextRetrieval.from_pretrained(run / "matcher").eval()
    inputs = processor(images=Image.open(tmp_path / "scene.png"), text=text, return_tensors="pt")
    inputs["input_ids"][:, 0] = stock.config.text_config.bos_token_id + 1
    with torch.no_grad():
        probability = stock(**inputs).itm_score.softmax(1)[0, 1].item()
    assert json.loads(out.splitlines()[0])["probability"] == pytest.approx(probability, abs=1e-4)


def test_a_resumed_run_ends_as_the_unbroken_one(run: Path, tmp_path: Path) -> None:
    resumed = finetune(tmp_path / "resumed", resume_from_checkpoint=run / "checkpoint-3")
    for name in ("model.safetensors", "matcher/model.safetensors", "momentum.safetensors"):
        assert (run / "checkpoint-6" / name).read_bytes() == (resumed / "checkpoint-6" / name).read_bytes(), name
    one, other = (load_file(folder / "matcher" / "model.safetensors") for folder in (run, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (run, resumed)]
    losses = [
        [
            {name: entry[name] for name in entry if "loss" in name}
            for entry in state["log_history"]
            if "itc_loss" in entry
        ]
        for state in states
    ]
    assert losses[0] == losses[1]


def test_a_few_scenes_are_learnt_from_scratch(tmp_path: Path) -> None:
    """By an untrained model, with all three losses at once: captions, and then the matcher's recall."""
    learnt = finetune(
        tmp_path / "learnt",
        max_train_samples=12,
        max_eval_samples=12,
        eval_split="train",
        test_split="train",
        allow_shared_images=True,
        max_steps=150,
        eval_steps=150,
        save_steps=150,
        per_device_train_batch_size=12,
        queue_size=0,
        warmup_steps=10,
    )
    assert results(learnt)["test_exact_match"] >= 0.75
    keys = {"dataset_name": "shapes", "eval_split": "train", "max_eval_samples": 12, "rerank_top_k": 4}
    arguments = [f"--{key}={value}" for key, value in keys.items()]
    run_checked(
        "blip_recipe.evaluate", f"--model={learnt / 'matcher'}", f"--output_dir={tmp_path / 'scores'}", *arguments
    )
    assert results(tmp_path / "scores")["eval_text_recall_1"] >= 0.75


def test_two_processes_learn_as_one(run: Path, tmp_path: Path) -> None:
    two = finetune(tmp_path / "two", processes=2, per_device_train_batch_size=4, negative_all_rank=True)
    for name in ("model.safetensors", "matcher/model.safetensors"):
        one, other = (load_file(folder / "checkpoint-6" / name) for folder in (run, two))
        assert all(torch.allclose(one[key], other[key], atol=1e-4) for key in one), name
    assert results(two)["test_loss"] == pytest.approx(results(run)["test_loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("captions_per_image", "2", "captions_per_image is 2: expected 1"),
        ("momentum", "1.5", "momentum is 1.5"),
        ("use_peft", "true", "use_peft"),
        ("prompt", "a picture of", "prompt is given"),
    ],
)
def test_wrong_keys_are_explained(tmp_path: Path, key: str, value: str, message: str) -> None:
    keys = KEYS | {"output_dir": tmp_path / "out", key: value}
    with pytest.raises(RecipeError, match=message):
        main(["recipes/shapes_pretrain.json", *(f"--{name}={each}" for name, each in keys.items())])
    assert not (tmp_path / "out").exists()
