"""Turn the ONNX files of a folder into smaller ones, or into those of OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from blip_recipe.data.storage import read_json, write_json
from blip_recipe.runtime.engines import import_openvino
from blip_recipe.runtime.record import RECORD

if TYPE_CHECKING:
    from pathlib import Path

HALVED = 1024
"""Number of values from which on weights are halved; smaller ones are not worth it."""


def quantize_dynamically(source: Path, target: Path) -> None:
    """Quantise weights to 8 bits, and the inputs of each layer while it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The default also quantises the inputs of opset 23's `Attention`, which ONNX Runtime then cannot load.
    types = ["MatMul", "Gemm", "Gather"]
    quantize_dynamic(source, target, op_types_to_quantize=types, per_channel=True, weight_type=QuantType.QInt8)


def quantize_weights(source: Path, target: Path) -> None:
    """Quantise weights to 8 bits in blocks of 32; everything is computed in float32."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=8, block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=False)


def halve_weights(source: Path, target: Path) -> None:
    """Write weights as float16; ONNX Runtime makes them float32 again when it loads them.

    Computing in float16 would be slower: ONNX Runtime has no float16 kernels for most operators on a CPU.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    casts = []
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        limit = np.finfo(np.float16).max
        if values.dtype != np.float32 or values.size < HALVED or np.abs(values).max() > limit:
            continue
        name = weights.name
        weights.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [weights.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


def convert_to_openvino(source: Path, target: Path, *, half: bool = False) -> None:
    """Write a graph as OpenVINO's pair of `.xml` and `.bin`, with weights in float32 or float16."""
    openvino = import_openvino()
    # Not `convert_model`, which reports each use to OpenVINO's makers.
    openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=half)


class Conversion(NamedTuple):
    """How a graph in an ONNX file in float32 is written, with which suffix."""

    write: Callable[[Path, Path], None]
    suffix: str = ".onnx"


CONVERSIONS = {
    ("onnx", "fp16"): Conversion(halve_weights),
    ("onnx", "int8"): Conversion(quantize_dynamically),
    ("onnx", "int8_weights"): Conversion(quantize_weights),
    ("openvino", "fp32"): Conversion(convert_to_openvino, ".xml"),
    ("openvino", "fp16"): Conversion(partial(convert_to_openvino, half=True), ".xml"),
}
"""The conversion for each format and precision but ONNX in float32, which is there first."""


def convert(folder: Path, target: Path, form: tuple[str, str]) -> None:
    """Write the files of a folder in ONNX and float32 to `target`, with its graphs converted.

    Args:
        folder: The folder.
        target: An existing folder.
        form: One of `CONVERSIONS`.
    """
    conversion = CONVERSIONS[form]
    for path in sorted(folder.iterdir()):
        if path.suffix == ".onnx":
            conversion.write(path, target / f"{path.stem}{conversion.suffix}")
        else:
            (target / path.name).write_bytes(path.read_bytes())
    values = {"suffix": conversion.suffix, "format": form[0], "dtype": form[1]}
    write_json(target / RECORD, read_json(folder / RECORD) | values)
