"""Set the drop path of the image encoder and the dropout of the text network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.blip.modeling_blip import BlipEncoderLayer
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

TEXT_PARTS = ("text_encoder", "text_decoder")


@dataclass
class DropPath:
    """A forward hook that drops a residual branch for some images of a training batch (arXiv 1603.09382).

    The outputs of the other images are divided by their probability, so that the expected output stays the same.

    Args:
        rate: The probability of an image's branch to be dropped.
    """

    rate: float

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The output `(images, patches, width)` of attention (the first of a tuple) or of the feed-forward network."""
        if not module.training:
            return output
        if isinstance(output, tuple):
            return self._drop(output[0]), *output[1:]
        return self._drop(output)

    def _drop(self, branch: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate
        return branch * kept.to(branch.dtype) / (1 - self.rate)


def set_drop_path(model: Any, rate: float) -> None:
    """Drop residual branches of the image encoder in training.

    The rate grows linearly from 0 in the first layer to `rate` in the last one, for attention and feed-forward network
    alike, as in the original (`models/vit.py`). It is 0.1 there for questions (`models/blip_vqa.py`) and for every
    large image encoder (`create_vit` in `models/blip.py`), and 0 elsewhere.

    Args:
        model: A BLIP with a `vision_model`, without an adapter.
        rate: The rate of the last layer, at least 0 and less than 1.
    """
    layers = [module for module in model.vision_model.modules() if isinstance(module, BlipEncoderLayer)]
    for layer, of_layer in zip(layers, torch.linspace(0, rate, len(layers)).tolist(), strict=True):
        for branch in (layer.self_attn, layer.mlp):
            old = [key for key, hook in branch._forward_hooks.items() if isinstance(hook, DropPath)]
            for key in old:
                del branch._forward_hooks[key]
            if of_layer:
                branch.register_forward_hook(DropPath(of_layer))


def set_text_dropout(model: Any, *, hidden: float | None = None, attention: float | None = None) -> None:
    """Set the dropout of text encoder and decoder, and record it in the configuration.

    The original has 0.1 for both (`configs/med_config.json`).

    Args:
        model: A BLIP, without an adapter.
        hidden: The dropout of embeddings and of the outputs of layers (`hidden_dropout_prob`); None: as it is.
        attention: The dropout of attention weights (`attention_probs_dropout_prob`); None: as it is.
    """
    config = model.config.text_config
    for name in TEXT_PARTS:
        part: nn.Module | None = getattr(model, name, None)
        for module in part.modules() if part else ():
            rate = attention if isinstance(module, BlipTextSelfAttention) else hidden
            for child in module.children():
                if rate is not None and isinstance(child, nn.Dropout):
                    child.p = rate
    if hidden is not None:
        config.hidden_dropout_prob = hidden
    if attention is not None:
        config.attention_probs_dropout_prob = attention


def describe_regularization(model: Any) -> dict[str, str]:
    """Drop path and dropout of the text in training, for the card; nothing where they are 0.

    Args:
        model: A BLIP, with or without an adapter, whose own dropout does not count.
    """
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    drop_path = max((hook.rate for hook in hooks if isinstance(hook, DropPath)), default=0.0)
    rates = {"hidden": 0.0, "attention": 0.0}
    for path, module in model.named_modules():
        # An adapter keeps its dropout in a dictionary of modules.
        if not set(TEXT_PARTS).isdisjoint(path.split(".")) and not isinstance(module, nn.ModuleDict):
            name = "attention" if isinstance(module, BlipTextSelfAttention) else "hidden"
            own = [child.p for child in module.children() if isinstance(child, nn.Dropout)]
            rates[name] = max([rates[name], *own])
    found = {"drop path": f"{drop_path:g} in the last layer of the image encoder"} if drop_path else {}
    if any(rates.values()):
        found["dropout of the text"] = f"{rates['hidden']:g} (layers), {rates['attention']:g} (attention)"
    return found
