"""Run a graph with ONNX Runtime or OpenVINO."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    """A graph that OpenVINO runs on the CPU.

    Args:
        path: An `.onnx` or `.xml` file.
        threads: Number of threads; None: OpenVINO's choice.
        precision: What is computed in: `f32` as torch does, `bf16` or `f16`. OpenVINO itself would choose `bf16` where
            the processor has it.
    """

    def __init__(self, path: Path, threads: int | None, precision: str = "f32") -> None:
        openvino = import_openvino()
        options = {"INFERENCE_PRECISION_HINT": precision} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self.model = openvino.Core().compile_model(path, "CPU", options)
        self.outputs = [each.get_any_name() for each in self.model.outputs]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs from all inputs, by name."""
        found = self.model(dict(feeds))
        # The memory of the outputs belongs to the request, which the next call uses again.
        return {name: np.array(found[number]) for number, name in enumerate(self.outputs)}


def import_openvino() -> Any:
    """Import OpenVINO without `openvino_telemetry`, which reports each import to Intel; OpenVINO works without it."""
    cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
    import openvino

    return openvino


class Engine(NamedTuple):
    """The package that runs graphs, the suffixes of the files that it reads, and how a file is loaded."""

    package: str
    suffixes: tuple[str, ...]
    load: Callable[[Path, int | None], Graph]


ENGINES = {
    "onnxruntime": Engine("onnxruntime", (".onnx",), OnnxRuntimeGraph),
    "openvino": Engine("openvino", (".xml", ".onnx"), OpenVinoGraph),
    "openvino_bf16": Engine("openvino", (".xml", ".onnx"), partial(OpenVinoGraph, precision="bf16")),
}
"""The ways to run graphs, the usual one first."""


def choose_engine(suffix: str, engine: str | None = None) -> str:
    """The name of the engine for files with this suffix: the given one, or the first that is installed.

    Raises:
        RecipeError: It is not installed, or cannot read them.
    """
    able = [name for name, each in ENGINES.items() if suffix in each.suffixes]
    if engine is not None and engine not in able:
        raise RecipeError(f"engine is {engine!r}, but files that end in {suffix} need {' or '.join(able)}.")
    for name in [engine] if engine else able:
        if find_spec(ENGINES[name].package):
            return name
    packages = list(dict.fromkeys(ENGINES[name].package for name in ([engine] if engine else able)))
    raise RecipeError(
        f"An exported model needs {' or '.join(packages)}, which is not installed: `pip install {packages[0]}`."
    )


def usual_threads() -> int | None:
    """The number of threads in `OMP_NUM_THREADS`, which ONNX Runtime does not read itself; None: not set."""
    number = os.environ.get("OMP_NUM_THREADS", "")
    return int(number) if number.isdecimal() and int(number) else None
