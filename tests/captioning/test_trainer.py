"""The loss is a token mean, generation sees no caption, and a step is a step however it is cut up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from captioners import save_captioner
from coco import write_image_folder
from commands import run_checked
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file

from blip_recipe import CaptionMetrics, CaptionTrainer, CaptionTrainingArguments, caption_pipeline
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.evaluate import main as evaluate
from blip_recipe.training.caption_collator import CaptionCollator

ONE_STEP = [
    "--max_steps",
    "1",
    "--optim",
    "sgd",
    "--learning_rate",
    "0.1",
    "--warmup_steps",
    "0",
    "--save_strategy",
    "no",
]
QUIET = [
    "--eval_strategy",
    "no",
    "--load_best_model_at_end",
    "false",
    "--dataloader_num_workers",
    "0",
    "--use_cpu",
    "true",
]
SMALL = ["--max_train_samples", "24", "--max_eval_samples", "5", "--label_smoothing_factor", "0.1", "--seed", "3"]


def test_the_loss_of_a_token_is_its_smoothed_cross_entropy() -> None:
    torch.manual_seed(0)
    model, processor = build_tiny_captioner(["a red circle", "two blue squares"])
    row = {"row": 0, "image": Image.new("RGB", (40, 30), "red"), "captions": ["a red circle", "two blue squares"]}
    batch = CaptionCollator(processor, normalize_captions=False)([row])
    labels, inputs = batch.pop("labels"), {name: batch[name] for name in batch.keys() - {"row"}}
    model.eval()
    log_probabilities = model(**inputs).logits[0].log_softmax(-1)
    losses = model(**inputs, labels=labels, label_smoothing=0.1).token_losses[0]
    for position, label in enumerate(labels[0, 1:].tolist()):
        told = log_probabilities[position]
        by_hand = 0.0 if label == -100 else 0.9 * -told[label].item() + 0.1 * -told.mean().item()
        assert losses[position].item() == pytest.approx(by_hand, abs=1e-6)
    assert (losses > 0).sum() == 8


def weights_after_one_step(output_dir: Path, *arguments: str, processes: int = 1) -> dict[str, torch.Tensor]:
    run_checked(
        "blip_recipe.finetune",
        "recipes/shapes_tiny.json",
        *ONE_STEP,
        *QUIET,
        *SMALL,
        *arguments,
        "--output_dir",
        output_dir,
        processes=processes,
    )
    return load_file(output_dir / "model.safetensors")


def test_one_step_is_the_same_step_for_any_batch_and_accumulation(tmp_path: Path) -> None:
    batch, steps = "--per_device_train_batch_size", "--gradient_accumulation_steps"
    whole = weights_after_one_step(tmp_path / "whole", batch, "8")
    cut: dict[str, Any] = {
        "accumulated": weights_after_one_step(tmp_path / "accumulated", batch, "4", steps, "2"),
    }
    start = build_start()
    assert max((whole[name] - start[name]).abs().max() for name in whole if name in start) > 1e-4
    for name, weights in cut.items():
        worst = max((whole[key] - weights[key]).abs().max().item() for key in whole)
        assert worst < 1e-6, f"{name}: {worst}"


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.long)])
def test_any_number_of_processes_trains_and_scores_as_one(one_process: Path, tmp_path: Path, processes: int) -> None:
    run = two_epochs(tmp_path, processes)
    whole, shared = (load_file(folder / "model.safetensors") for folder in (one_process, run))
    worst = max((whole[name] - shared[name]).abs().max().item() for name in whole)
    assert worst < 1e-6
    scores = [json.loads((folder / "all_results.json").read_text()) for folder in (one_process, run)]
    assert scores[0]["test_loss"] == pytest.approx(scores[1]["test_loss"], abs=1e-6)
    lines = [(folder / "predictions.jsonl").read_text() for folder in (one_process, run)]
    assert lines[0] == lines[1]
    assert len(lines[1].splitlines()) == 5


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_epochs(tmp_path_factory.mktemp("one"), 1)


def two_epochs(output_dir: Path, processes: int) -> Path:
    """Two epochs of two steps with drawn captions, augmentation and grouping by length."""
    keys = {
        "max_train_samples": 24,
        "per_device_train_batch_size": 12 // processes,
        "num_train_epochs": 2,
        "captions_per_image": 2,
        "train_sampling_strategy": "group_by_length",
        "augmentation": "blip",
        "logging_steps": 1,
    }
    changes = [f"--{key}={value}" for key, value in keys.items()]
    steps = [*ONE_STEP, "--max_steps", "-1"]
    run = ["recipes/shapes_tiny.json", *steps, *QUIET, *SMALL, *changes, "--output_dir", str(output_dir)]
    run_checked("blip_recipe.finetune", *run, processes=processes)
    return output_dir


def build_start() -> dict[str, torch.Tensor]:
    """The weights before the step: none are needed that the vocabulary decides."""
    torch.manual_seed(3)
    model: BlipForCaptioning = build_tiny_captioner(["a"])[0]
    return {name: torch.zeros_like(weight) for name, weight in model.state_dict().items() if "LayerNorm.bias" in name}


PENALTIES: dict[str, Any] = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "length_penalty": -9.0,
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_reaches_evaluation_and_is_recorded_for_pipelines(tmp_path: Path, name: str) -> None:
    base = save_captioner(tmp_path / "base")
    photos = load_dataset("imagefolder", data_dir=str(write_image_folder(tmp_path / "photos")))["test"]
    plain: dict[str, Any] = {"num_beams": 4, "max_length": 12, "min_length": 2}
    decoding = plain | {name: PENALTIES[name]}
    keys: dict[str, Any] = {f"generation_{name}": value for name, value in decoding.items()}
    args = CaptionTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[], metrics=["bleu"], **keys)
    trainer = CaptionTrainer(str(base), args, eval_dataset=photos)
    trainer.evaluate()
    written = [each["caption"] for each in trainer.predictions]
    stock = CaptionMetrics(trainer.plain_model, trainer.processor, photos, metrics=["bleu"], **decoding)
    stock()
    assert [each["caption"] for each in stock.predictions] == written
    pipe, pictures = caption_pipeline(base, device="cpu"), photos["image"]
    assert captions_of_pipe(pipe(pictures, **plain)) != written, "the test needs a penalty that matters"
    assert captions_of_pipe(pipe(pictures, **decoding)) == written
    trainer.save_model()
    assert json.loads((tmp_path / "out/recipe.json").read_text()).items() >= keys.items()
    recorded = caption_pipeline(tmp_path / "out", device="cpu")
    assert captions_of_pipe(recorded(pictures)) == written
    assert recorded.settings.penalties == {name: PENALTIES[name]}
    words = ["--model", tmp_path / "out", "--dataset_name", tmp_path / "photos", "--eval_split", "test"]
    evaluate([*map(str, words), "--output_dir", str(tmp_path / "scores"), "--metrics", "bleu", "--use_cpu", "true"])
    lines = (tmp_path / "scores/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == written


def test_meteor_loads_while_the_model_generates_and_an_error_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_captioner(tmp_path / "base")
    photos = load_dataset("imagefolder", data_dir=str(write_image_folder(tmp_path / "photos")))["test"]
    args = CaptionTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[], metrics=["meteor"])
    trainer = CaptionTrainer(str(base), args, eval_dataset=photos)
    stock = CaptionMetrics(trainer.plain_model, trainer.processor, photos, metrics=["meteor"])
    before, seen = javas(), list[psutil.Process]()

    def fail(*args: Any, **kwargs: Any) -> None:
        seen.extend(javas() - before)
        raise MemoryError

    monkeypatch.setattr(trainer, "generate", fail)
    monkeypatch.setattr(stock, "_caption", fail)
    scored: list[Callable[[], Any]] = [trainer.evaluate, stock]
    for number, score in enumerate(scored, start=1):
        with pytest.raises(MemoryError):
            score()
        assert len(seen) == number
        assert javas() == before


def javas() -> set[psutil.Process]:
    """The Java processes that this one has started."""
    return {child for child in psutil.Process().children() if "java" in child.name()}


def test_the_end_of_beam_search_is_recorded_for_pipelines_here_and_of_transformers(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"generation_early_stopping": "never", "generation_length_penalty_counts_prompt": True}
    args = CaptionTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[], prompt="a picture of ", **keys)
    CaptionTrainer(str(save_captioner(tmp_path / "base")), args).save_model()
    assert json.loads((tmp_path / "out/recipe.json").read_text()).items() >= keys.items()
    saved = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert saved["early_stopping"] == "never"
    assert "length_penalty_counts_prompt" not in saved, "transformers does not have it"
    settings = caption_pipeline(tmp_path / "out", device="cpu").settings
    assert (settings.early_stopping, settings.length_penalty_counts_prompt) == ("never", True)


def captions_of_pipe(results: Any) -> list[str]:
    return [result[0]["generated_text"] for result in results]
