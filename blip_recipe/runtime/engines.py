"""Run a graph with ONNX Runtime or OpenVINO."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Graph(Protocol):
    """A loaded graph."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs from all inputs, by name."""
        ...


class OnnxRuntimeGraph:
    """A graph that ONNX Runtime runs on the CPU.

    Args:
        path: The `.onnx` file.
        threads: Number of threads; None: one for each core.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [each.name for each in self.session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs from all inputs, by name."""
        return dict(zip(self.outputs, self.session.run(self.outputs, dict(feeds)), strict=True))


class OpenVinoGraph:
    """A graph that OpenVINO runs on the CPU, in float32 as torch does, not in bfloat16.

    Args:
        path: An `.onnx` or `.xml` file.
        threads: Number of threads; None: OpenVINO's choice.
    """

    def __init__(self, path: Path, threads: int | None) -> None:
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self.model = openvino.Core().compile_model(path, "CPU", options)
        self.outputs = [each.get_any_name() for each in self.model.outputs]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs from all inputs, by name."""
        found = self.model(dict(feeds))
        # The memory of the outputs belongs to the request, which the next call uses again.
        return {name: np.array(found[number]) for number, name in enumerate(self.outputs)}


ENGINES: dict[str, type[OnnxRuntimeGraph] | type[OpenVinoGraph]] = {
    "onnxruntime": OnnxRuntimeGraph,
    "openvino": OpenVinoGraph,
}
"""The class of each package that runs graphs, the usual one first."""


def choose_engine(suffix: str, engine: str | None = None) -> str:
    """The package that runs graphs in files with this suffix: the given one, or the first that is installed.

    Raises:
        RecipeError: It is not installed, or cannot read them.
    """
    able = [name for name in ENGINES if suffix == ".onnx" or name == "openvino"]
    if engine is not None and engine not in able:
        raise RecipeError(f"engine is {engine!r}, but files that end in {suffix} need {' or '.join(able)}.")
    for name in [engine] if engine else able:
        if find_spec(name):
            return name
    raise RecipeError(
        f"An exported model needs {engine or ' or '.join(able)}, which is not installed: "
        f"`pip install {engine or able[0]}`."
    )


def usual_threads() -> int | None:
    """The number of threads in `OMP_NUM_THREADS`, which ONNX Runtime does not read itself; None: not set."""
    number = os.environ.get("OMP_NUM_THREADS", "")
    return int(number) if number.isdecimal() and int(number) else None
