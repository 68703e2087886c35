"""The kinds of models that are exported: how each is loaded, cut into graphs and described in `export.json`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import blip_recipe
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.errors import RecipeError
from blip_recipe.exporting.graphs import Graph, answerer_graphs, captioner_graphs, matcher_graphs
from blip_recipe.models.loading import find_stock_class, load_finished, load_merged, read_repository_json
from blip_recipe.models.matching import MAX_TOKENS
from blip_recipe.retrieval.modeling import BlipForRetrieval
from blip_recipe.runtime.record import RECORD_VERSION
from blip_recipe.vqa.collator import MAX_QUESTION_LENGTH
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.tokens import use_question_token

if TYPE_CHECKING:
    from transformers import BlipProcessor

    from blip_recipe.models.decoding import DecodingSettings
    from blip_recipe.models.stock import StockModel


class Kind(NamedTuple):
    """A kind of models: its task, its class, its graphs, and the maximum length of the texts that it reads."""

    task: str
    model_class: type[StockModel]
    graphs: Callable[[Any], dict[str, Graph]]
    max_text_tokens: int | None


KINDS = {
    "BlipForConditionalGeneration": Kind("captioning", BlipForCaptioning, captioner_graphs, None),
    "BlipForQuestionAnswering": Kind("vqa", BlipForAnswering, answerer_graphs, MAX_QUESTION_LENGTH),
    "BlipForImageTextRetrieval": Kind("retrieval", BlipForRetrieval, matcher_graphs, MAX_TOKENS),
}
"""The kind of each stock class."""

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino")
"""Packages whose versions are recorded."""


@dataclass(frozen=True)
class Source:
    """A loaded model, a full one or an adapter that was merged.

    Attributes:
        name: Its Hub id, or the last part of its local path.
        kind: Its kind.
        model: The model in float32, in evaluation mode.
        processor: Its processor.
        settings: The prompt and decoding that it was scored with.
        recipe: Its `recipe.json`; empty if there is none.
    """

    name: str
    kind: Kind
    model: Any
    processor: BlipProcessor
    settings: DecodingSettings
    recipe: dict[str, Any]


def load_source(name: str, **options: Any) -> Source:
    """Load the model to export; an adapter is merged into its base.

    Args:
        name: Directory or Hub id.
        options: `revision`, `allow_pickle` and `trust_remote_code`, as for `load_finished`.

    Raises:
        RecipeError: It cannot be loaded, or cannot be exported.
    """
    hub = {"revision": options.get("revision")}
    kind = KINDS[find_stock_class(name, trust_remote_code=options.get("trust_remote_code", False), **hub)]
    if read_repository_json(name, "adapter_config.json", **hub):
        model, processor, settings = load_merged(name, kind.model_class, **options)
        model.use_sdpa()
    else:
        model, processor, settings = load_finished(
            name, kind.model_class, dtype=torch.float32, quantization=None, **options
        )
    if kind.task == "vqa":
        use_question_token(processor.tokenizer, model.config.text_config.bos_token_id)
    _check_processor(processor.image_processor, name)
    recipe = read_repository_json(name, "recipe.json", **hub)
    path = Path(name).expanduser()
    shown = path.resolve().name if path.exists() else name
    return Source(shown, kind, model.eval(), processor, settings, recipe)


def _check_processor(image_processor: Any, name: str) -> None:
    """Check that the image processor does what the runner does: resize, rescale and normalise.

    Raises:
        RecipeError: It does something else.
    """
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False, "do_pad": False}
    other = [step for step, usual in steps.items() if bool(getattr(image_processor, step, None)) != usual]
    if other or abs(image_processor.rescale_factor - 1 / 255) > 1e-9:
        raise RecipeError(
            f"The image processor of {name!r} has another {', '.join(other) or 'rescale_factor'} than BLIP's: expected "
            "one that resizes, divides by 255 and normalises. Such a model cannot be exported."
        )


def describe(source: Source, suffix: str, dtype: str, opset: int | None) -> dict[str, Any]:
    """The content of `export.json`, without the results of the check."""
    text, processor = source.model.config.text_config, source.processor.image_processor
    heads = text.num_attention_heads
    record = {
        "record_version": RECORD_VERSION,
        "task": source.kind.task,
        "source": source.name,
        "suffix": suffix,
        "dtype": dtype,
        "opset": opset,
        "versions": {"blip_recipe": blip_recipe.__version__, "python": platform.python_version(), **installed()},
        "image": {
            "height": processor.size["height"],
            "width": processor.size["width"],
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "resample": int(processor.resample),
        },
        "tokens": {"start": text.bos_token_id, "end": text.sep_token_id, "padding": text.pad_token_id},
        "heads": [heads, text.hidden_size // heads],
        "positions": text.max_position_embeddings,
        "decoding": asdict(source.settings),
    }
    return record | ({"max_text_tokens": source.kind.max_text_tokens} if source.kind.max_text_tokens else {})


def installed() -> dict[str, str]:
    """The versions of `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
