"""Drop path and text dropout are those of the original, in training only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vqa_models import QUESTIONS, save_answerer

from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.errors import RecipeError
from blip_recipe.finetune import main
from blip_recipe.models.adapters import add_lora, lora_config
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.models.regularization import DropPath, describe_regularization, set_drop_path, set_text_dropout
from blip_recipe.pretraining.tiny import build_tiny_pretrained
from blip_recipe.recipe.arguments import FinetuneOptions
from blip_recipe.recipe.checks import check_recipe
from blip_recipe.recipe.parsing import read_recipe
from blip_recipe.retrieval.tiny import build_tiny_retriever
from blip_recipe.vqa.tiny import build_tiny_answerer

BUILDERS: dict[str, Any] = {
    "captioning": build_tiny_captioner,
    "vqa": build_tiny_answerer,
    "retrieval": build_tiny_retriever,
    "pretrain": build_tiny_pretrained,
}


@pytest.mark.parametrize("task", BUILDERS)
def test_drop_path_leaves_out_branches_of_images_in_training_only(task: str) -> None:
    torch.manual_seed(0)
    model = BUILDERS[task](QUESTIONS)[0].use_sdpa()
    layers = model.vision_model.encoder.layers
    pixels = torch.randn(1, 3, 96, 96).expand(64, -1, -1, -1)
    with torch.no_grad():
        plain = model.eval().vision_model(pixels).last_hidden_state
        branches = [layers[1].self_attn(layers[1].layer_norm1(torch.randn(1, 5, 128, generator=seeded(1))))[0]]
        set_drop_path(model, 0.25)
        assert torch.equal(model.eval().vision_model(pixels).last_hidden_state, plain)
        # The first of two layers has a rate of 0, and the last one of 0.25: an image has one of four outputs.
        found = model.train().vision_model(pixels).last_hidden_state
        assert len(found.flatten(1).round(decimals=4).unique(dim=0)) == 4
        # Of the last layer's branches, each is dropped for about a quarter of the images, and else divided by 0.75.
        states = torch.randn(1, 5, 128, generator=seeded(1)).expand(2000, -1, -1)
        output = layers[1].self_attn(layers[1].layer_norm1(states))[0]
    dropped = (output == 0).flatten(1).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(output[~dropped][0], branches[0][0] / 0.75, atol=1e-5, rtol=1e-5)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rates_grow_with_the_layer_and_can_be_set_again() -> None:
    model, _ = build_tiny_answerer(QUESTIONS)
    model.config.vision_config.num_hidden_layers = 4
    model = type(model)(model.config)
    set_drop_path(model, 0.6)
    set_drop_path(model, 0.3)
    assert rates(model) == pytest.approx([0.1, 0.2, 0.3])
    set_drop_path(model, 0.0)
    assert rates(model) == []


def rates(model: nn.Module) -> list[float]:
    """The rate of each layer that has one."""
    found = []
    for layer in model.vision_model.encoder.layers:  # type: ignore[union-attr]
        hooks = [list(branch._forward_hooks.values()) for branch in (layer.self_attn, layer.mlp)]
        assert hooks[0] == hooks[1]
        found += [hook.rate for hook in hooks[0] if isinstance(hook, DropPath)]
    return found


@pytest.mark.parametrize("task", BUILDERS)
def test_dropout_of_the_text_is_that_of_a_model_built_so(task: str) -> None:
    model = BUILDERS[task](QUESTIONS)[0]
    set_text_dropout(model, hidden=0.1, attention=0.2)
    config = model.config
    assert (config.text_config.hidden_dropout_prob, config.text_config.attention_probs_dropout_prob) == (0.1, 0.2)
    built = type(model)(config)
    assert dropouts(model) == dropouts(built)
    assert {0.1, 0.2} <= set(dropouts(model).values())
    set_text_dropout(model, hidden=0.0)
    assert {value for name, value in dropouts(model).items() if "text_" in name} == {0.0, 0.2}


def dropouts(model: nn.Module) -> dict[str, float]:
    return {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}


def test_a_recipe_sets_both_and_what_it_saves_tells_the_dropout(tmp_path: Path) -> None:
    base = save_answerer(tmp_path / "base")
    keys = {
        "model_name_or_path": base,
        "max_train_samples": 8,
        "max_eval_samples": 2,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "warmup_steps": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "dataloader_num_workers": 0,
        "use_cpu": True,
    }
    chosen = {"drop_path_rate": 0.5, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    losses = {}
    for name, more in {"plain": {}, "dropped": chosen, "again": chosen}.items():
        words = [f"--{key}={value}" for key, value in (keys | more | {"output_dir": tmp_path / name}).items()]
        main(["recipes/shapes_vqa.json", *words])
        losses[name] = json.loads((tmp_path / name / "all_results.json").read_text())["train_loss"]
    assert losses["plain"] != losses["dropped"] == losses["again"]
    config = json.loads((tmp_path / "dropped/config.json").read_text())["text_config"]
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("recipe", "keys", "says"),
    [
        ("shapes_scst", {"model_name_or_path": "a/b", "drop_path_rate": 0.1}, "samples without dropout"),
        ("shapes_scst", {"model_name_or_path": "a/b", "hidden_dropout_prob": 0.1}, "hidden_dropout_prob is 0.1"),
        ("shapes_vqa", {"drop_path_rate": 1.0}, "drop_path_rate is 1.0: expected at least 0 and less than 1"),
        (
            "shapes_tiny",
            {"drop_path_rate": 0.1, "cache_image_embeds": True, "freeze_vision": True, "augmentation": "none"},
            "drop_path_rate is 0.1 and cache_image_embeds is true",
        ),
    ],
)
def test_dropout_that_would_do_nothing_is_refused(recipe: str, keys: dict[str, Any], says: str, tmp_path: Path) -> None:
    argv = [f"recipes/{recipe}.json", f"--output_dir={tmp_path / 'run'}", *(f"--{k}={v}" for k, v in keys.items())]
    with pytest.raises(RecipeError, match=says):
        check_recipe(read_recipe(FinetuneOptions, prog="", description="", recipe_needed=True, argv=argv))


def test_the_recipe_of_vqav2_has_the_originals_values() -> None:
    recipe = json.loads(Path("recipes/vqav2.json").read_text())
    names = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
    assert [recipe[name] for name in names] == [0.1, 0.1, 0.1]


@pytest.mark.parametrize("task", BUILDERS)
def test_a_card_tells_of_drop_path_and_dropout_but_not_of_an_adapters(task: str) -> None:
    model = BUILDERS[task](QUESTIONS)[0].use_sdpa()
    arguments = ModelArguments(model_name_or_path="base", use_peft=True, lora_dropout=0.4)
    config = lora_config(arguments)
    assert config is not None
    assert describe_regularization(model) == {}
    set_drop_path(model, 0.25)
    set_text_dropout(model, hidden=0.1, attention=0.2)
    expected = {
        "drop path": "0.25 in the last layer of the image encoder",
        "dropout of the text": "0.1 (layers), 0.2 (attention)",
    }
    assert describe_regularization(model) == describe_regularization(add_lora(model, config)) == expected
