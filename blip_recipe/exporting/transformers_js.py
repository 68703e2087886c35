"""Lay a captioner out as transformers.js loads it, as a `VisionEncoderDecoderModel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blip_recipe.data.shapes import draw_scene, make_scenes
from blip_recipe.data.storage import write_json
from blip_recipe.errors import RecipeError
from blip_recipe.exporting.checking import PICTURES, Results, equal_share
from blip_recipe.exporting.folder import check_difference
from blip_recipe.exporting.graphs import browser_graphs
from blip_recipe.exporting.onnx_files import BROWSER_OPSET, write_onnx
from blip_recipe.models.captioner import generate_token_ids
from blip_recipe.models.processors import save_processor
from blip_recipe.runtime.engines import OnnxRuntimeGraph, usual_threads
from blip_recipe.runtime.search import generate
from blip_recipe.runtime.settings import Search

if TYPE_CHECKING:
    from pathlib import Path

    from blip_recipe.exporting.kinds import Source


PAST = "past_key_values"
"""The first part of the names of transformers.js' cache."""


def write_transformers_js(source: Source, folder: Path) -> None:
    """Write the graphs and configurations; the folder has a configuration of its own, which is not BLIP's.

    Raises:
        RecipeError: The model is no captioner.
    """
    if source.kind.task != "captioning":
        raise RecipeError(
            f"{source.name} is no captioner: transformers.js has a class for captioners alone. Use --format onnx."
        )
    (folder / "onnx").mkdir()
    for name, graph in browser_graphs(source.model).items():
        write_onnx(graph, folder / "onnx" / f"{name}.onnx", BROWSER_OPSET)
    save_processor(source.processor, folder)
    (folder / "processor_config.json").unlink(missing_ok=True)  # names BLIP's processor, which transformers.js lacks
    for name, content in configurations(source).items():
        write_json(folder / name, content)


@torch.no_grad()
def compare_in_python(source: Source, folder: Path) -> Results:
    """Compare greedy captions of the graphs with those of torch, on drawn scenes and equal pixels.

    Raises:
        RecipeError: The probabilities of the first token differ.
    """
    images = [draw_scene(scene) for scene in make_scenes("test")[:PICTURES]]
    pixels = source.processor.image_processor(images, return_tensors="pt").pixel_values
    encoder, decoder = (
        OnnxRuntimeGraph(folder / f"{name}.onnx", usual_threads()) for name in ("encoder_model", "decoder_model_merged")
    )
    text, settings = source.model.config.text_config, source.settings
    lengths: dict[str, Any] = {"min_length": settings.min_length, "max_length": settings.max_length, "num_beams": 1}
    ids = generate_token_ids(source.model, source.processor.tokenizer, pixels, "", do_sample=False, **lengths)
    states = encoder.run({"pixel_values": pixels.numpy()})["last_hidden_state"]
    reader = _BrowserReader(decoder, states, text)
    search = Search(text.sep_token_id, text.pad_token_id, settings.max_length, settings.min_length)
    start = np.full((len(images), 1), text.bos_token_id, dtype=np.int64)
    found = generate(reader, start, search)[:, 0]
    first = source.model(pixel_values=pixels, input_ids=torch.from_numpy(start)).logits[:, -1].softmax(-1)
    logits = _BrowserReader(decoder, states, text).read(start[:, None])[:, 0]
    difference = float((first - torch.from_numpy(logits).softmax(-1)).abs().max())
    check_difference(source, difference)
    equal = equal_share(ids, found, text.sep_token_id)
    return {"pictures": len(images), "greedy": equal, "difference": difference}


class _BrowserReader:
    """A decoder for greedy search that runs the merged graph, with one text for each picture."""

    def __init__(self, graph: OnnxRuntimeGraph, states: np.ndarray, text: Any) -> None:
        self.graph, self.states = graph, states
        heads = text.num_attention_heads
        empty = np.zeros((len(states), heads, 0, text.hidden_size // heads), dtype=np.float32)
        names = [each.name for each in graph.session.get_inputs() if each.name.startswith(PAST)]
        self.cache = dict.fromkeys(names, empty)

    def read(self, input_ids: np.ndarray) -> np.ndarray:
        """Read tokens `(images, 1, tokens)`; returns the last logits `(images, 1, vocabulary)`."""
        found = self.graph.run({"input_ids": input_ids[:, 0], "encoder_hidden_states": self.states, **self.cache})
        self.cache = {name: found[name.replace(PAST, "present", 1)] for name in self.cache}
        return found["logits"][:, None, -1]

    def reorder(self, beams: np.ndarray) -> None:
        """There is one text for each picture."""


def configurations(source: Source) -> dict[str, dict[str, Any]]:
    """The JSON files that transformers.js reads, by name."""
    text, vision = source.model.config.text_config, source.model.config.vision_config
    processor, settings = source.processor.image_processor, source.settings
    tokens = {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.sep_token_id,
        "pad_token_id": text.pad_token_id,
        "decoder_start_token_id": text.bos_token_id,
    }
    decoder = {
        "model_type": "trocr",  # a decoder with cross-attention, of whose shape transformers.js reads these
        "is_decoder": True,
        "decoder_layers": text.num_hidden_layers,
        "decoder_attention_heads": text.num_attention_heads,
        "d_model": text.hidden_size,
        "vocab_size": text.vocab_size,
    }
    encoder = {"model_type": "vit", "hidden_size": vision.hidden_size, "image_size": vision.image_size}
    return {
        "config.json": {
            "architectures": ["VisionEncoderDecoderModel"],
            "model_type": "vision-encoder-decoder",
            "is_encoder_decoder": True,
            "encoder": encoder,
            "decoder": decoder,
            **tokens,
        },
        "generation_config.json": {
            **tokens,
            "max_length": settings.max_length,
            "min_length": settings.min_length,
            "repetition_penalty": settings.repetition_penalty,
            "no_repeat_ngram_size": settings.no_repeat_ngram_size,
        },
        "preprocessor_config.json": {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": processor.size["height"], "width": processor.size["width"]},
            "resample": int(processor.resample),
            "do_rescale": True,
            "rescale_factor": processor.rescale_factor,
            "do_normalize": True,
            "image_mean": list(processor.image_mean),
            "image_std": list(processor.image_std),
        },
    }
