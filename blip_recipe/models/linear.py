"""Compute linear layers with oneDNN: about half of torch's usual time on AMD processors with AVX-512.

torch multiplies float32 matrices with Intel's MKL, which gives other makers' processors no AVX-512. oneDNN does, and is
a part of torch. `python -m benchmarks.linear` measures both.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import has_torch_function

from blip_recipe.models.threads import is_tiny

PROCESSOR = Path("/proc/cpuinfo")


class OneDnnLinear(nn.Linear):
    """A linear layer that oneDNN computes in float32 on a CPU; otherwise it is the layer of torch.

    The transforms of `torch.func` do not take it.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        if (
            # An exported graph needs operators that others know, and other kinds of tensors have products of their own.
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or has_torch_function((input, self.weight))
            or not (input.is_cpu and self.weight.is_cpu)
            or not input.dtype == self.weight.dtype == torch.float32
            or input.shape[-1] != self.weight.shape[-1]  # torch's message names both shapes
            or not input.numel()  # oneDNN refuses it
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        # oneDNN takes any bias for one without gaps.
        return _Linear.apply(input, self.weight, None if self.bias is None else self.bias.contiguous())


def use_onednn(model: nn.Module) -> None:
    """Let oneDNN compute the linear layers of a model on a CPU, where it is faster.

    Layers stay as they are on other processors, on other devices, and in tiny models, whose products are too small to
    gain, or with `torch.backends.mkldnn.enabled = False`. Only the class of a layer changes, so weights, names and
    adapters stay. Code that looks for layers whose class is `nn.Linear` itself does not find them.

    Args:
        model: The model that is about to be trained or used. It is changed in place.
    """
    if next(model.parameters()).device.type != "cpu" or is_tiny(model) or not _is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


def _is_faster() -> bool:
    """Whether this is a processor of AMD with AVX-512, and torch may use oneDNN."""
    onednn = torch.backends.mkldnn
    if not (onednn.is_available() and onednn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    # Windows names the maker in `platform`.
    described = PROCESSOR.read_text() if PROCESSOR.exists() else platform.processor()
    return "AuthenticAMD" in described


def product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`left` `(..., inner)` times the transposed `right` `(columns, inner)`, plus `bias` `(columns,)`."""
    if torch.is_grad_enabled():  # in a gradient that will be differentiated itself
        return F.linear(left, right, bias)
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """A linear map and its gradients."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        for_states, for_weight, _ = ctx.needs_input_grad
        # The gradient of the weight needs the states, that of the states the weight: frozen ones need neither.
        ctx.save_for_backward(states if for_weight else None, weight if for_states else None)
        return product(states, weight, bias)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        states, weight = ctx.saved_tensors
        for_states, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(gradient, weight.t()) if for_states else None,
            product(rows.t(), states.reshape(-1, states.shape[-1]).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )
