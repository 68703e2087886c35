"""The task `retrieval` from recipe to scores: what it learns, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_checked
from huggingface_hub import ModelCard
from retrievers import load_exactly
from safetensors.torch import load_file
from transformers import BlipForImageTextRetrieval

from blip_recipe.compare import main as compare
from blip_recipe.data.shapes import draw_scene, make_scenes
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main
from blip_recipe.models.matching import tokenize_texts
from blip_recipe.models.processors import load_processor
from blip_recipe.retrieval.modeling import BlipForRetrieval

SCORES = [*(f"{kind}_recall_{rank}" for kind in ("text", "image") for rank in (1, 5, 10)), "recall_mean"]

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
    "logging_steps": 1,
    "rerank_top_k": 4,
    "dataloader_num_workers": 0,
    "use_cpu": "true",
}


def finetune(output_dir: Path, *, processes: int = 1, **changes: object) -> Path:
    keys = KEYS | {"output_dir": output_dir} | changes
    arguments = [f"--{key}={value}" for key, value in keys.items()]
    run_checked("blip_recipe.finetune", "recipes/shapes_retrieval.json", *arguments, processes=processes, timeout=900)
    return output_dir


def results(output_dir: Path) -> dict[str, float]:
    return json.loads((output_dir / "all_results.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(tmp_path_factory.mktemp("retrieval") / "whole")


def test_a_run_leaves_scores_predictions_card_and_a_stock_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(run)
    for prefix in ("baseline", "test"):
        assert all(0 <= found[f"{prefix}_{name}"] <= 1 for name in SCORES)
        assert found[f"{prefix}_loss"] > 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    own = [next((n for n, text in enumerate(line["texts"], 1) if text in line["captions"]), None) for line in lines]
    assert [line["rank"] if line["rank"] <= len(line["texts"]) else None for line in lines] == own
    assert found["test_text_recall_1"] == sum(line["rank"] == 1 for line in lines) / 10
    before = [json.loads(line) for line in (run / "baseline_predictions.jsonl").read_text().splitlines()]
    assert found["baseline_text_recall_5"] == sum(line["rank"] <= 5 for line in before) / 10
    ranks = [rank for line in lines for rank in line["caption_ranks"]]
    assert len(ranks) == sum(len(line["captions"]) for line in lines)
    assert found["test_image_recall_5"] == pytest.approx(sum(rank <= 5 for rank in ranks) / len(ranks))
    compare([str(run / "baseline_predictions.jsonl"), str(run / "predictions.jsonl"), "--json"])
    compared = json.loads(capsys.readouterr().out)["scores"]
    assert compared.keys() == set(SCORES)
    for name, each in compared.items():
        assert each["p_value"] == found[f"test_{name}_p_value"]
        assert each["second"] == pytest.approx(found[f"test_{name}"])
        assert found[f"test_{name}_low"] <= each["second"] <= found[f"test_{name}_high"]
    card = ModelCard.load(run / "README.md")
    assert card.data.metrics == ["recall"]
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert {name: values[name] for name in SCORES} == {name: found[f"test_{name}"] for name in SCORES}
    assert "Text recall at 1" in card.text
    stock = load_exactly(BlipForImageTextRetrieval, run)
    state = load_file(run / "checkpoint-6" / "momentum.safetensors")
    assert state["id_queue"].min() >= 0
    assert int(state["pointer"]) == 48 % 20
    assert stock.config.logit_scale_init_value != pytest.approx(2.6592, abs=1e-4)


def test_recalls_of_a_saved_model_are_those_counted_pair_by_pair(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    model, processor = BlipForRetrieval.from_pretrained(run).use_sdpa(), load_processor(str(run))
    pictures = [draw_scene(scene) for scene in make_scenes("test")[:10]]
    pixels = processor.image_processor(pictures, return_tensors="pt").pixel_values
    texts = [text for line in lines for text in line["captions"]]
    tokens = tokenize_texts(processor.tokenizer, texts)
    with torch.no_grad():
        embeds = model.eval().encode_images(pixels)
        cosines = model.image_features(embeds) @ model.text_features(**tokens).T
        for image, line in enumerate(lines):
            best = cosines[image].topk(4).indices
            logits = model.match_logits(embeds[image : image + 1], **{k: v[best] for k, v in tokens.items()})
            scores = logits[:, 1] + cosines[image, best]
            expected = [texts[number] for number in best[scores.argsort(descending=True)].tolist()]
            assert line["texts"][0] == expected[0]
            assert line["text_scores"] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=2e-4)


def test_a_resumed_run_ends_as_the_unbroken_one(run: Path, tmp_path: Path) -> None:
    resumed = finetune(tmp_path / "resumed", resume_from_checkpoint=run / "checkpoint-3")
    for name in ("model.safetensors", "momentum.safetensors"):
        one, other = (load_file(folder / "checkpoint-6" / name) for folder in (run, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    configurations = [json.loads((folder / "checkpoint-6" / "config.json").read_text()) for folder in (run, resumed)]
    assert configurations[0] == configurations[1]
    scores = [{key: value for key, value in results(folder).items() if "recall" in key} for folder in (run, resumed)]
    assert scores[0] == scores[1]


def test_a_few_scenes_are_learnt_from_scratch(tmp_path: Path) -> None:
    """By an untrained model: where a loss, the negatives or the ranking are wrong, it stays at chance."""
    learnt = finetune(
        tmp_path / "learnt",
        max_train_samples=12,
        max_eval_samples=12,
        eval_split="train",
        test_split="train",
        allow_shared_images=True,
        max_steps=120,
        eval_steps=120,
        save_steps=120,
        per_device_train_batch_size=12,
        queue_size=0,
        warmup_steps=10,
    )
    found = results(learnt)
    assert found["baseline_text_recall_1"] <= 0.25
    assert found["baseline_image_recall_1"] <= 0.25
    assert found["test_text_recall_1"] >= 0.75
    assert found["test_image_recall_1"] >= 0.75


def test_two_processes_learn_and_score_as_one(run: Path, tmp_path: Path) -> None:
    two = finetune(tmp_path / "two", processes=2, per_device_train_batch_size=4)
    one, other = (load_file(folder / "checkpoint-6" / "model.safetensors") for folder in (run, two))
    assert all(torch.allclose(one[key], other[key], atol=1e-4) for key in one)
    found, expected = results(two), results(run)
    for name in ("baseline_loss", "baseline_text_recall_5", "baseline_image_recall_1", "test_loss"):
        assert found[name] == pytest.approx(expected[name], abs=1e-4), name
    assert len((two / "predictions.jsonl").read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("captions_per_image", "2", "captions_per_image is 2: expected 1"),
        ("queue_size", "-1", "queue_size is -1"),
        ("momentum", "1.5", "momentum is 1.5"),
        ("metrics", "cider", "metrics names 'cider'"),
        ("prompt", "a picture of", "prompt is given"),
    ],
)
def test_wrong_keys_are_explained(tmp_path: Path, key: str, value: str, message: str) -> None:
    keys = KEYS | {"output_dir": tmp_path / "out", key: value}
    with pytest.raises(RecipeError, match=message):
        main(["recipes/shapes_retrieval.json", *(f"--{name}={each}" for name, each in keys.items())])
    assert not (tmp_path / "out").exists()
