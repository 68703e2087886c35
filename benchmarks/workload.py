"""BLIP configurations of several sizes, synthetic pictures and captions, and the minimum arithmetic of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import BertTokenizer, BlipConfig, BlipProcessor

from blip_recipe.models.linear import OneDnnLinear
from blip_recipe.models.tiny import tiny_processor

Mode = Literal["full", "frozen", "lora", "8bit"]
IMAGE_SIZE, PATCH, VOCABULARY = 384, 16, 30524
PIECES = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", VOCABULARY - 2: "[DEC]"}
"""Special tokens at BLIP's ids."""
PATCHES = (IMAGE_SIZE // PATCH) ** 2 + 1
TEXT_WIDTH = 768
CAPTION_LENGTHS = (11, 12, 13, 13, 14)
"""Tokens of the five captions of a synthetic picture, including `[DEC]` and `[SEP]`. COCO's median is 13."""


@dataclass(frozen=True)
class Size:
    """Layers and width of the image encoder, and layers of the text decoder."""

    vision_layers: int
    vision_width: int
    text_layers: int

    def config(self) -> BlipConfig:
        """The original's configuration with ViT-B or ViT-L at this size (`configs/med_config.json`)."""
        ids = {"bos_token_id": 30522, "eos_token_id": 102, "sep_token_id": 102, "pad_token_id": 0}
        return BlipConfig(
            text_config={
                "hidden_size": TEXT_WIDTH,
                "encoder_hidden_size": self.vision_width,
                "intermediate_size": 4 * TEXT_WIDTH,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": 12,
                "vocab_size": VOCABULARY,
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "label_smoothing": 0.1,
                **ids,
            },
            vision_config={
                "hidden_size": self.vision_width,
                "intermediate_size": 4 * self.vision_width,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_width // 64,
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH,
                "layer_norm_eps": 1e-6,
                "initializer_range": 0.02,
            },
        )

    def step_flop(self, mode: Mode, images: int) -> float:
        """The minimum floating-point operations of a training step: each image is encoded once, without padding.

        The forward pass takes two operations per weight and token. The gradient of a layer's input and the gradient of
        its weights take as many each, if they are needed.
        """
        vision_back, keys_back, text_back = {
            "full": (3, 3, 3),
            "frozen": (1, 2, 3),
            "lora": (1, 1, 2),
            "8bit": (1, 1, 2),
        }[mode]
        parts = self.forward_flop()
        return images * (
            vision_back * parts["vision"] + keys_back * parts["cross keys and values"] + text_back * parts["text"]
        )

    def forward_flop(self) -> dict[str, float]:
        """Floating-point operations of the forward pass for one image with five captions, including attention."""
        wide, text = self.vision_width, TEXT_WIDTH
        tokens = sum(CAPTION_LENGTHS)
        within = sum(length**2 for length in CAPTION_LENGTHS)
        vision_layer = 24 * PATCHES * wide**2 + 4 * PATCHES**2 * wide
        text_layer = 28 * tokens * text**2 + 4 * text * (within + tokens * PATCHES)
        predicted = tokens - len(CAPTION_LENGTHS)
        return {
            "vision": self.vision_layers * vision_layer + 2 * PATCHES * 3 * PATCH**2 * wide,
            "cross keys and values": self.text_layers * 4 * PATCHES * wide * text,
            "text": self.text_layers * text_layer + 2 * predicted * text * (text + VOCABULARY),
        }


SIZES = {
    "tiny": Size(1, 64, 1),
    "small": Size(4, 768, 4),
    "base": Size(12, 768, 12),
    "large": Size(24, 1024, 12),
}
"""Models by name. `tiny` only tries a benchmark out."""


def made_images(images: int, size: int = IMAGE_SIZE) -> torch.Tensor:
    """Random `(images, 3, size, size)` with about the variance of normalised pictures."""
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))


def made_processor() -> BlipProcessor:
    """A processor with BLIP's vocabulary size and image size."""
    pieces = [PIECES.get(number, f"w{number}") for number in range(VOCABULARY)]
    tokenizer = BertTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, bos_token=PIECES[VOCABULARY - 2]
    )
    return tiny_processor(tokenizer, IMAGE_SIZE)


def made_captions(images: int) -> list[list[torch.Tensor]]:
    """Token ids of five captions for each picture."""
    generator = torch.Generator().manual_seed(1)
    return [
        [
            torch.cat(
                [
                    torch.tensor([30522]),
                    torch.randint(1000, 20000, (length - 2,), generator=generator),
                    torch.tensor([102]),
                ]
            )
            for length in CAPTION_LENGTHS
        ]
        for _ in range(images)
    ]


def caption_texts(images: int) -> list[list[str]]:
    """Five captions of each picture, which `made_processor` splits into `CAPTION_LENGTHS` tokens."""
    return [[" ".join(f"w{token}" for token in ids[1:-1].tolist()) for ids in each] for each in made_captions(images)]


def matmul_flop_rate(device: torch.device, dtype: torch.dtype, width: int = 4096) -> float:
    """Floating-point operations per second of a large matrix product: the best of several, on a CPU of two kinds."""
    width = width if device.type == "cuda" else 2048
    states = torch.randn(width, width, device=device).to(dtype)
    layers = [nn.Linear(width, width, bias=False).to(device, dtype) for _ in range(2)]
    layers[1].__class__ = OneDnnLinear
    best = float("inf")
    for _ in range(10):
        for layer in layers:
            synchronise(device)
            began = time.perf_counter()
            with torch.no_grad():
                layer(states)
            synchronise(device)
            best = min(best, time.perf_counter() - began)
    return 2.0 * width**3 / best


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def saved_bytes(model: nn.Module, loss: Any) -> int:
    """Bytes of the activations that `loss()` saves for its gradient, without weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        # Without its history: an output that its own gradient holds would never be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    total = sum(kept.values())
    del value
    return total


class PeakMemory:
    """The peak increase of memory in bytes from here on; 0 without a GPU and without Linux's `/proc`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif STATUS.exists():
            (STATUS.parent / "clear_refs").write_text("5")
        self.before = self._read("VmRSS", torch.cuda.memory_allocated)

    def increase(self) -> int:
        """The peak so far minus the memory at the start."""
        return self._read("VmHWM", torch.cuda.max_memory_allocated) - self.before

    def _read(self, name: str, of_gpu: Callable[[torch.device], int]) -> int:
        if self.device.type == "cuda":
            return of_gpu(self.device)
        lines = STATUS.read_text().splitlines() if STATUS.exists() else []
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


STATUS = Path("/proc/self/status")
