"""Make the models that `benchmarks.export` compares: one with random weights, and its exports. In a process of its own.

python -m benchmarks.export_models SIZE FOLDER
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.workload import SIZES, made_images, made_processor
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.data.shapes import draw_scene, make_scenes
from blip_recipe.exporting.conversion import convert
from blip_recipe.exporting.folder import write_graphs
from blip_recipe.exporting.kinds import load_source
from blip_recipe.models.processors import save_processor

GAIN = 1.5
"""Text weights this much larger than fresh ones make captions of random weights differ from picture to picture."""


def make(size: str, folder: Path) -> None:
    """Write the model, its exports, a picture, and pixels."""
    torch.manual_seed(0)
    model = BlipForCaptioning(SIZES[size].config())
    with torch.no_grad():
        for weights in model.text_decoder.parameters():
            weights.mul_(GAIN if weights.ndim > 1 else 1.0)
    model.save_pretrained(folder / "model")
    save_processor(made_processor(), folder / "model")
    source = load_source(str(folder / "model"))
    forms = [("onnx", "fp16"), ("onnx", "int8"), ("onnx", "int8_weights"), ("openvino", "fp32")]
    names = {"fp32": None} | {
        form[0] if form[0] == "openvino" else form[1]: form for form in forms if find_spec(form[0])
    }
    for name, form in names.items():
        (folder / name).mkdir()
        if form is None:
            write_graphs(source, folder / name)
        else:
            convert(folder / "fp32", folder / name, form)
    draw_scene(make_scenes("test")[0]).save(folder / "picture.png")
    np.save(folder / "pixels.npy", made_images(8).numpy())


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
