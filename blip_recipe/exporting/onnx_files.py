"""Write graphs as ONNX files."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blip_recipe.exporting.graphs import Graph

OPSET = 23
"""The first opset with an `Attention` operator, which ONNX Runtime has since 1.23: a fifth faster than opset 20."""

BROWSER_OPSET = 20
"""The opset for browsers, whose runtimes have not all operators of later ones."""


def write_onnx(graph: Graph, path: Path, opset: int = OPSET) -> None:
    """Write a graph as an ONNX file.

    Raises:
        RecipeError: torch cannot export it.
    """
    dynamic = tuple(graph.axes[name] for name in graph.inputs)
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(graph.inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=_as_arguments(graph, dynamic),
                verbose=False,
            )
            program.save(path, external_data=False)
        except ImportError as error:
            raise RecipeError(f"ONNX files need {error.name}: install blip-recipe[export].") from error


def _as_arguments(graph: Graph, dynamic: tuple[dict[int, str], ...]) -> tuple[object, ...]:
    """Nest dynamic axes as the arguments of `forward` are: those of `*args` are a tuple of their own."""
    code = graph.module.forward.__code__  # type: ignore[union-attr]
    named = code.co_argcount - 1
    return (*dynamic[:named], dynamic[named:]) if code.co_flags & 0x04 else dynamic


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from warning of names that it does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
