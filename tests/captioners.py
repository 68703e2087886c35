"""Tiny captioners and drawn pictures for tests: untrained, yet with another caption for another picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.tiny import build_tiny_captioner
from blip_recipe.models.processors import load_processor, save_processor
from blip_recipe.models.vocabulary import add_tokens, missing_tokens

CAPTIONS = ["a red square on a blue ground", "two green circles", "a picture of a small dog", "three yellow cats"]
GAIN = 3.0
"""Weights this much larger than fresh ones make an untrained model look at its picture."""


def save_captioner(directory: Path, *, seed: int = 0, **recipe: Any) -> Path:
    """A full captioner in `directory`, with `recipe.json` where `recipe` has keys."""
    torch.manual_seed(seed)
    model, processor = build_tiny_captioner(CAPTIONS)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(GAIN if weights.ndim > 1 else 1.0)
    model.save_pretrained(directory)
    save_processor(processor, directory)
    if recipe:
        write_recipe(directory, **recipe)
    return directory


def save_adapter(directory: Path, base: Path | str, *, base_directory: Path | None = None, **recipe: Any) -> Path:
    """A LoRA adapter that changes captions, of the model `base`, whose weights may lie elsewhere."""
    from peft import LoraConfig, get_peft_model

    from blip_recipe.models.adapters import name_stock_class

    weights = base_directory or Path(base)
    config = LoraConfig(r=4, target_modules=BlipForCaptioning.lora_layers, task_type=None, init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(BlipForCaptioning.from_pretrained(weights), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(directory))
    name_stock_class(directory, BlipForCaptioning.stock_class)
    save_processor(load_processor(str(weights)), directory)
    write_recipe(directory, **recipe)
    return directory


def save_translated(directory: Path) -> Path:
    """A captioner whose tokenizer got the words of Vietnamese and Chinese captions."""
    model, processor = BlipForCaptioning.from_pretrained(save_captioner(directory)), load_processor(str(directory))
    before = len(processor.tokenizer)
    missing = missing_tokens(["một hình tròn màu đỏ", "左上角有红色的圆形"], processor.tokenizer)
    add_tokens(model, processor.tokenizer, missing)
    with torch.no_grad():  # as large as the other rows
        model.get_input_embeddings().weight[before:].normal_(std=0.02 * GAIN)
    model.save_pretrained(directory)
    save_processor(processor, directory)
    return directory


SPELT = [
    "the man's dog doesn't run, it's asleep",
    "two o'clock, three cats, and a child's kite",
    "they're at the lady's shop, aren't they?",
    "i'm sure we've seen it before!",
    "a plain red square",
]
"""Captions whose punctuation BERT's tokenizer cuts off."""


def save_speller(directory: Path, pictures: list[Path], *, prompt: str = "", **recipe: Any) -> Path:
    """A captioner that learnt `SPELT` for five pictures, each after `prompt`."""
    torch.manual_seed(0)
    model, processor = build_tiny_captioner([prompt, *SPELT])
    texts = processor.tokenizer([prompt + caption for caption in SPELT], padding=True, return_tensors="pt")
    ids = texts.input_ids
    ids[:, 0] = processor.tokenizer.bos_token_id
    pixels = processor.image_processor([Image.open(path) for path in pictures], return_tensors="pt").pixel_values
    labels = ids.masked_fill(texts.attention_mask == 0, -100)
    learn(model, pixel_values=pixels, input_ids=ids, attention_mask=texts.attention_mask, labels=labels)
    model.save_pretrained(directory)
    save_processor(processor, directory)
    write_recipe(directory, prompt=prompt, generation_max_length=40, **recipe)
    return directory


def learn(model: Any, *, steps: int = 80, **batch: torch.Tensor) -> None:
    """Train a tiny model on one batch until it knows it by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        losses = model(**batch).token_losses
        (losses.sum() / (losses != 0).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def write_recipe(directory: Path, **recipe: Any) -> None:
    """The keys of `recipe.json` that a captioner's users need."""
    (directory / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")


def draw_pictures(directory: Path, count: int, *, size: int = 40) -> list[Path]:
    """`count` different PNG files named by number."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{number:04}.png" for number in range(count)]
    for number, path in enumerate(paths):
        picture = Image.new("RGB", (size, size), (37 * number % 256, 91 * number % 256, 151 * number % 256))
        corner = 5 + 3 * number % (size - 10)
        ImageDraw.Draw(picture).ellipse((2, 2, corner, size - 3), fill=(211 * number % 256, 255 - number % 256, 99))
        picture.save(path)
    return paths
