"""Adapters of all tasks, on full, 8-bit and 4-bit bases: trained, pushed, loaded back and merged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import GAIN
from commands import run_checked
from hub_server import HubServer
from safetensors.torch import load, load_file
from transformers import BlipForImageTextRetrieval

from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.models.adapters import add_lora, lora_config, save_learnt_beside
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.models.loading import load_merged
from blip_recipe.models.processors import save_processor
from blip_recipe.retrieval.modeling import BlipForRetrieval
from blip_recipe.retrieval.tiny import build_tiny_retriever
from blip_recipe.vqa.questions import questions_vocabulary
from blip_recipe.vqa.tiny import build_tiny_answerer

BUILDERS: dict[str, Any] = {
    "vqa": build_tiny_answerer,
    "retrieval": build_tiny_retriever,
    "scst": build_tiny_captioner,
}
RECIPES = {"vqa": "shapes_vqa", "retrieval": "shapes_retrieval", "scst": "shapes_tiny"}
SCORES = {"vqa": "vqa_accuracy", "retrieval": "recall_mean", "scst": "bleu_1"}
KEYS: dict[str, Any] = {
    "max_train_samples": 24,
    "max_eval_samples": 6,
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "warmup_steps": 0,
    "learning_rate": 0.01,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "dataloader_num_workers": 0,
    "use_cpu": True,
    "use_peft": True,
    "lora_r": 4,
    "push_to_hub": True,
}
OF_TASK: dict[str, dict[str, Any]] = {
    "vqa": {},
    "retrieval": {"queue_size": 16, "rerank_top_k": 4},
    # Samples are drawn in evaluation mode, between steps; the base without the adapter is the reference model.
    "scst": {
        "stage": "scst",
        "num_generations": 3,
        "kl_coef": 0.1,
        "metrics": "bleu",
        "metric_for_best_model": "bleu_1",
    },
}


def save_base(task: str, folder: Path) -> Path:
    """An untrained model that looks at its pictures and texts."""
    torch.manual_seed(0)
    model, processor = BUILDERS[task](questions_vocabulary())
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(GAIN if weights.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    save_processor(processor, folder)
    return folder


@pytest.fixture(name="server", scope="module")
def fixture_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub with a base model for each task."""
    folder = tmp_path_factory.mktemp("bases")
    with HubServer() as server:
        for task in BUILDERS:
            server.publish_model(f"lab/{task}", save_base(task, folder / task))
        yield server


def results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "all_results.json").read_text())


@pytest.mark.parametrize(
    ("task", "bits"),
    [
        ("vqa", "4bit"),
        ("retrieval", "8bit"),
        ("scst", "4bit"),
        pytest.param("scst", "8bit", marks=pytest.mark.long),
        *(pytest.param("vqa", bits, marks=pytest.mark.long) for bits in ("full", "8bit")),
        *(pytest.param("retrieval", bits, marks=pytest.mark.long) for bits in ("full", "4bit")),
    ],
)
def test_an_adapter_is_pushed_loaded_and_merged(task: str, bits: str, server: HubServer, tmp_path: Path) -> None:
    run, repo_id = tmp_path / "run", f"lab/{task}-{bits}"
    keys = KEYS | {"model_name_or_path": f"lab/{task}", "hub_model_id": repo_id, "output_dir": run}
    keys |= OF_TASK[task]
    keys |= {} if bits == "full" else {f"load_in_{bits}": True}
    # At its end, the run loads the pushed adapter, and compares its text for a row with that of the trained model.
    arguments = [f"--{key}={value}" for key, value in keys.items()]
    run_checked("blip_recipe.finetune", f"recipes/{RECIPES[task]}.json", *arguments, env=server.environment())
    published = server.files(repo_id)
    assert published["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    learnt = {
        name: weights for name, weights in load(published["adapter_model.safetensors"]).items() if "lora_B" in name
    }
    assert len(learnt) > 0
    assert all(weights.abs().max() > 0 for name, weights in learnt.items() if "crossattention" not in name)
    found = results(run)
    assert found["test_loss"] != found["baseline_loss"]

    data = ("--dataset_name=shapes", "--eval_split=test", "--max_eval_samples=6")
    options = {
        "vqa": ["--generation_num_beams=1"],
        "retrieval": ["--rerank_top_k=4"],
        "scst": ["--metrics=bleu"],
    }[task]
    command = ("blip_recipe.evaluate", *data, *options, "--use_cpu=true")
    run_checked(*command, "--model", repo_id, "--output_dir", tmp_path / "loaded", env=server.environment())
    run_checked("blip_recipe.merge", repo_id, tmp_path / "merged", env=server.environment())
    run_checked(*command, "--model", tmp_path / "merged", "--output_dir", tmp_path / "scored")
    loaded, merged = results(tmp_path / "loaded"), results(tmp_path / "scored")
    for name in ("loss", SCORES[task]):
        assert loaded[f"eval_{name}"] == pytest.approx(found[f"test_{name}"], abs=1e-5), name
        # A merged model has the base in full precision. An untrained one then writes other captions.
        if task == "scst" and name != "loss":
            continue
        tolerance = 1e-5 if bits == "full" else 0.1
        assert merged[f"eval_{name}"] == pytest.approx(found[f"test_{name}"], rel=tolerance, abs=tolerance / 10), name
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_the_learnt_temperature_is_saved_with_an_adapter(tmp_path: Path) -> None:
    base = save_base("retrieval", tmp_path / "base")
    config = lora_config(ModelArguments(model_name_or_path=str(base), use_peft=True, lora_r=4))
    assert config is not None
    model: Any = add_lora(BlipForRetrieval.from_pretrained(base), config)
    temperature = model.get_base_model().temperature
    assert temperature.requires_grad
    before = temperature.item()
    with torch.no_grad():
        temperature.fill_(0.0321)
    model.save_pretrained(str(tmp_path / "adapter"))
    save_learnt_beside(tmp_path / "adapter", model)
    save_processor(build_tiny_retriever(questions_vocabulary())[1], tmp_path / "adapter")
    merged, _, _ = load_merged(str(tmp_path / "adapter"), BlipForRetrieval)
    assert merged.temperature.item() == pytest.approx(0.0321) != before
    # Plain transformers has no temperature, and loads the adapter without it.
    stock = BlipForImageTextRetrieval.from_pretrained(tmp_path / "adapter")
    name = "text_encoder.encoder.layer.0.attention.self.query.lora_A.default.weight"
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(stock.get_parameter(name), saved[f"base_model.model.{name}".replace(".default", "")])
