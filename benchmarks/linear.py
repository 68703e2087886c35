"""Compare the two float32 products that torch has on a CPU: its own (MKL) and oneDNN's.

python -m benchmarks.linear                  # one thread; a minute; results/linear_cpu.json

The layers are those of ViT-B's feed-forward network. Rows are the tokens of a decoding step with 8 beams, the patches
of one picture, and those of eight. `blip_recipe.models.linear` uses oneDNN on AMD's processors with AVX-512.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from blip_recipe.errors import run_command
from blip_recipe.models.linear import OneDnnLinear

LAYERS = [(768, 3072), (3072, 768)]
ROWS = [8, 577, 8 * 577]


def main() -> None:
    """Time both sides for each layer and number of rows, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=10, help="Turns of each side; the fastest counts.")
    parser.add_argument("--output", type=Path, default=RESULTS / "linear_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compare(*sizes, number, options.turns) for sizes in LAYERS for number in ROWS]
    about = {"threads": options.threads, "instructions": torch.backends.cpu.get_cpu_capability()}
    write_results(options.output, machine(["torch"], **about), rows)


def compare(inputs: int, outputs: int, rows: int, turns: int) -> dict[str, Any]:
    """Rates of both sides in GFLOP/s, forward alone and with the gradients of states and weights."""
    layers = {"torch": nn.Linear(inputs, outputs), "oneDNN": nn.Linear(inputs, outputs)}
    layers["oneDNN"].__class__ = OneDnnLinear
    layers["oneDNN"].load_state_dict(layers["torch"].state_dict())
    states = torch.randn(rows, inputs, requires_grad=True)
    gradient = torch.randn(rows, outputs)
    row: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "rows": rows}
    for name, products, step in (("forward", 1, forward), ("with gradients", 3, with_gradients)):
        seconds = {side: [step(layer, states, gradient) for _ in range(turns)] for side, layer in layers.items()}
        best = {side: min(times) for side, times in seconds.items()}
        operations = 2 * products * inputs * outputs * rows
        row |= {f"{name}, {side}: GFLOP/s": round(operations / best[side] / 1e9, 1) for side in best}
        row[f"{name}, oneDNN / torch"] = round(best["torch"] / best["oneDNN"], 2)
    with torch.no_grad():
        row["largest difference"] = (layers["torch"](states) - layers["oneDNN"](states)).abs().max().item()
    return row


@torch.no_grad()
def forward(layer: nn.Module, states: torch.Tensor, gradient: torch.Tensor) -> float:
    """Seconds of the output alone."""
    return seconds_of(lambda: layer(states))


def with_gradients(layer: nn.Module, states: torch.Tensor, gradient: torch.Tensor) -> float:
    """Seconds of the output and all gradients."""
    return seconds_of(lambda: layer(states).backward(gradient))


if __name__ == "__main__":
    run_command(main)
