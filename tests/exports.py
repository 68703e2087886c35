"""Exported models for tests: real ones, and graphs that torch runs without an export, which takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_code

from blip_recipe.data.storage import write_json
from blip_recipe.exporting.graphs import Graph
from blip_recipe.exporting.kinds import Source, describe, load_source
from blip_recipe.models.processors import save_processor
from blip_recipe.runtime.answerer import ExportedAnswerer
from blip_recipe.runtime.captioner import ExportedCaptioner
from blip_recipe.runtime.folder import ExportedFolder
from blip_recipe.runtime.matcher import ExportedMatcher
from blip_recipe.runtime.record import RECORD

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install openvino"
)
"""For tests that run OpenVINO. They do so in other processes: a later signal has ended the one that had loaded it."""

CLASSES: dict[str, Any] = {"captioning": ExportedCaptioner, "vqa": ExportedAnswerer, "retrieval": ExportedMatcher}


@dataclass(frozen=True)
class TorchGraph:
    """A graph that torch runs, with the interface of the engines."""

    graph: Graph

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert list(feeds.keys() - self.graph.inputs.keys()) == []
        with torch.no_grad():
            found = self.graph.module(*(torch.from_numpy(np.array(feeds[name])) for name in self.graph.inputs))
        return {name: values.numpy() for name, values in zip(self.graph.outputs, found, strict=True)}


def run_in_torch(model: Path, folder: Path, **options: Any) -> tuple[Source, Any]:
    """A model, and the runner of its graphs in torch, whose folder has all but the graphs."""
    source = load_source(str(model))
    folder.mkdir(exist_ok=True)
    save_processor(source.processor, folder)
    write_json(folder / RECORD, describe(source, ".onnx", "fp32", None))
    graphs = {name: TorchGraph(graph) for name, graph in source.kind.graphs(source.model).items()}
    opened = ExportedFolder.open(folder, source.kind.task)
    return source, CLASSES[source.kind.task](opened, *graphs.values(), **options)


def run_command(command: str, *arguments: object, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The lines of a command in a process that cannot import torch, transformers or the packages `without`."""
    missing = ("torch", "transformers", "wrapt", *without)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}));"
        f"from blip_recipe.{command} import main; main(sys.argv[1:])"
    )
    return run_lines(code, *arguments)


def run_lines(code: str, *arguments: object) -> list[Any]:
    """The JSON lines that `code` prints in a process of its own."""
    done = run_code(code, *map(str, arguments), cold=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
