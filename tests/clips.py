"""A tiny CLIP for tests, and the authors' CLIPScore written out plainly."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE = 32


def save_clip(directory: Path, *, seed: int = 0, length: int = 77) -> Path:
    """An untrained CLIP that reads letter by letter, and cuts texts at `length` tokens."""
    directory.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [START, END, *letters, *(f"{letter}</w>" for letter in letters)]
    (directory / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**sizes, **ends, "vocab_size": len(words), "max_position_embeddings": length}
    vision = {**sizes, "image_size": SIZE, "patch_size": 8}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.5 if weights.ndim > 1 else 1.0)  # so that it looks at its input
    model.save_pretrained(directory)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
        directory
    )
    return directory


class PlainClip:
    """The features of the stock class, one input at a time, with the authors' preparation."""

    def __init__(self, directory: Path) -> None:
        self.model: Any = CLIPModel.from_pretrained(directory)
        self.ids = json.loads((directory / "vocab.json").read_text())
        self.length = self.model.config.text_config.max_position_embeddings
        self.prepare = transforms.Compose(
            [
                transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(SIZE),
                lambda image: image.convert("RGB"),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    @torch.no_grad()
    def image(self, path: Path) -> np.ndarray:
        found = self.model.get_image_features(self.prepare(Image.open(path))[None])
        return normalized(getattr(found, "pooler_output", found))

    @torch.no_grad()
    def text(self, caption: str) -> np.ndarray:
        pieces = re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", f"A photo depicts {caption}".lower())
        ids = [self.ids[START]]
        for piece in pieces:
            ids += [self.ids[letter] for letter in piece[:-1]] + [self.ids[f"{piece[-1]}</w>"]]
        ids = [*ids, self.ids[END]]
        if len(ids) > self.length:
            ids = [*ids[: self.length - 1], self.ids[END]]
        found = self.model.get_text_features(torch.tensor([ids]))
        return normalized(getattr(found, "pooler_output", found))


def normalized(features: torch.Tensor) -> np.ndarray:
    row = features[0].float().numpy()
    return row / np.linalg.norm(row)


def plain_clip_scores(image: np.ndarray, caption: np.ndarray, references: Sequence[np.ndarray]) -> tuple[float, float]:
    """CLIP-S(c, v) = w max(cos(c, v), 0), and RefCLIP-S = H-Mean(CLIP-S, max over r of max(cos(c, r), 0))."""
    clip_s = 2.5 * max(float(caption @ image), 0.0)
    closest = max(max(float(caption @ each), 0.0) for each in references)
    return clip_s, 2 * clip_s * closest / (clip_s + closest) if clip_s + closest else 0.0
