"""Adapters train, merge into their base, and refuse what cannot be saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel
from transformers import BlipForConditionalGeneration

from blip_recipe.captioning.modeling import BlipForCaptioning, load_captioner
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.errors import RecipeError
from blip_recipe.merge import main as merge_main
from blip_recipe.models.adapters import add_lora, lora_config, name_stock_class
from blip_recipe.models.arguments import ModelArguments
from blip_recipe.models.loading import load_blip, load_merged
from blip_recipe.models.processors import save_processor

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "vision too": {"lora_target_modules": ["query", "value", "qkv", "projection", "fc1"]},
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model, processor = build_tiny_captioner(["a red circle on the left", "two blue squares"])
    model.save_pretrained(folder)
    save_processor(processor, folder)
    return folder


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(2, 3, 96, 96, generator=generator)
    return {"pixel_values": pixel_values, "input_ids": torch.randint(5, 40, (2, 6), generator=generator)}


def with_lora(base: Path, arguments: ModelArguments) -> Any:
    """The base with the fresh adapter that `arguments` ask for."""
    config = lora_config(arguments)
    assert config is not None
    return add_lora(load_blip(str(base), BlipForCaptioning, quantization=arguments.quantization), config)


def save_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter with weights that matter, as a run saves it."""
    arguments = ModelArguments(model_name_or_path=str(base), use_peft=True, lora_r=4, **options)
    torch.manual_seed(1)
    model = with_lora(base, arguments)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(str(folder))
    name_stock_class(folder, BlipForCaptioning.stock_class)
    recipe = {"prompt": "a ", "load_in_8bit": arguments.load_in_8bit, "load_in_4bit": arguments.load_in_4bit}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    save_processor(load_captioner(str(base))[1], folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_computes_what_the_adapter_computes(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", **KINDS[kind])
    merge_main([str(adapter), str(tmp_path / "merged")])
    with torch.no_grad():
        untouched = load_captioner(str(base))[0](**inputs()).logits
        adapted = load_captioner(str(adapter), quantization=None)[0](**inputs()).logits
        merged, _, settings = load_captioner(str(tmp_path / "merged"))
        of_merged = merged(**inputs()).logits
    assert (untouched - adapted).abs().max() > 1e-2
    torch.testing.assert_close(of_merged, adapted, atol=1e-5, rtol=1e-5)
    assert settings.prompt == "a "
    assert not hasattr(merged, "peft_config")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_an_adapter_is_loaded_on_the_base_it_was_trained_on(base: Path, tmp_path: Path, bits: str) -> None:
    adapter = save_adapter(base, tmp_path, **KINDS[bits])
    model: Any = load_captioner(str(adapter))[0]
    linear = type(model.get_base_model().vision_model.encoder.layers[0].mlp.fc1).__name__
    assert linear == {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits]


def test_adapters_load_without_this_package(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path)
    with torch.no_grad():
        ours = load_captioner(str(adapter))[0](**inputs()).logits
        for stock in (AutoPeftModel.from_pretrained(adapter), BlipForConditionalGeneration.from_pretrained(adapter)):
            assert "blip_recipe" not in type(getattr(stock, "base_model", stock)).__module__
            torch.testing.assert_close(stock.eval()(**inputs()).logits, ours, atol=1e-5, rtol=1e-5)


def test_only_the_text_decoder_is_adapted_by_default(base: Path) -> None:
    model = with_lora(base, ModelArguments(use_peft=True))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("text_decoder.bert.encoder" in name and "lora_" in name for name in trained)
    layers = {name.split(".lora_")[0] for name in trained}
    assert len(layers) == 2 * 10  # two layers: four of self-, four of cross-attention, two of the feed-forward


@pytest.mark.parametrize("targets", [["all-linear"], ["nothing"]])
def test_targets_that_cannot_be_adapted_are_refused(base: Path, targets: list[str]) -> None:
    with pytest.raises(RecipeError, match="query key value dense"):
        with_lora(base, ModelArguments(use_peft=True, lora_target_modules=targets))


def test_only_an_adapter_can_be_merged(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"adapter_config\.json"):
        load_merged(str(base), BlipForCaptioning)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RecipeError, match="not empty"):
        merge_main([str(base), str(tmp_path / "full")])
