"""The memory of a step is found by tracing it, and agrees with what the step really keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.scst import ScstTrainer
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.captioning.trainer import CaptionTrainer, CaptionTrainingArguments
from blip_recipe.models.adapters import add_lora, lora_config
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.parsing import Recipe, read_recipe
from blip_recipe.training.memory import (
    activation_bytes,
    choose_checkpointing,
    estimate_peak_bytes,
    weight_bytes,
)

IMAGES, TOKENS = 8, 24


def build(kind: str) -> BlipForCaptioning:
    torch.manual_seed(0)
    model, _ = build_tiny_captioner(["a red circle"], image_size=384)
    model.use_sdpa().train()
    if kind == "frozen":
        model.vision_model.requires_grad_(False)
    config = lora_config(ModelArguments(use_peft=kind == "lora", model_name_or_path="base"))
    return add_lora(model, config) if config else model  # type: ignore[return-value]


def kept_by_a_real_step(model: BlipForCaptioning, bf16: bool) -> int:
    """Bytes of what autograd keeps for the gradient of a step, weights not counted, and the gradient of logits."""
    own = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.zeros(IMAGES, TOKENS, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=bf16):
        logits = model(pixel_values=torch.zeros(IMAGES, 3, 384, 384), input_ids=ids, position_ids=ids).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
        total = sum(storage.nbytes() for storage in kept.values()) + 4 * logits.numel()
    del loss
    return total


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["full", "frozen", "lora"])
def test_traced_activations_are_those_of_a_real_step(kind: str, checkpointing: bool, bf16: bool) -> None:
    model = build(kind)
    traced = activation_bytes(model, IMAGES, TOKENS, bf16=bf16, checkpointing=checkpointing)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    assert traced == pytest.approx(kept_by_a_real_step(model, bf16), rel=0.02)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = build("full").eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    activation_bytes(model, IMAGES, TOKENS, bf16=False, checkpointing=True)
    assert not model.training
    assert not model.is_activation_checkpointing
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_adapters_and_checkpointing_save_memory(tmp_path: Path) -> None:
    training = CaptionTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    full, lora = (
        estimate_peak_bytes(build(kind), training, IMAGES, TOKENS, checkpointing=False) for kind in ("full", "lora")
    )
    checkpointed = estimate_peak_bytes(build("full"), training, IMAGES, TOKENS, checkpointing=True)
    assert lora < checkpointed < full


@pytest.mark.parametrize("asked", [None, True])
def test_checkpointing_is_left_alone_where_there_is_no_gpu(asked: bool | None, tmp_path: Path) -> None:
    choice = [] if asked is None else [f"--activation_checkpointing={asked}"]
    recipe = read(tmp_path, *choice)
    assert choose_checkpointing(build("full"), recipe.training, TOKENS)
    assert recipe.training.activation_checkpointing is bool(asked)


def test_a_step_of_self_critical_training_counts_its_samples_and_its_start(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"captions": [["a red circle"], ["a red circle", "a red circle"]]})
    tokenizer = build_tiny_captioner(["a red circle"])[1].tokenizer
    words = ["--stage=scst", "--num_generations=4", "--kl_coef=0.1"]
    plain, second = (read(tmp_path, *added).training for added in ([], words))
    plain.captions_per_image = None
    assert CaptionTrainer.tokens_per_image(plain, rows, tokenizer) == 10
    assert ScstTrainer.tokens_per_image(second, rows, tokenizer) == 4 * second.generation_max_length
    model = build("full")
    plain_peak = choose_checkpointing(model, plain, TOKENS, copies=CaptionTrainer.frozen_copies(model, plain)) or 0
    second_peak = choose_checkpointing(model, second, TOKENS, copies=ScstTrainer.frozen_copies(model, second)) or 0
    assert second_peak - plain_peak == weight_bytes(model)


def read(tmp_path: Path, *words: str) -> Recipe[FinetuneOptions]:
    argv = ["recipes/shapes_tiny.json", "--use_cpu=true", f"--output_dir={tmp_path / 'run'}", *words]
    return read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=argv)
