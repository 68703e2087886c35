"""What the pipelines of all tasks share: how a model is loaded for them, and how transformers hears of them.

`transformers.pipelines` brings the pipelines along (`blip_recipe/__init__.py`): it is not imported here, or this module
would be asked for before it is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import wrapt
from PIL import Image
from transformers import AutoTokenizer, BlipImageProcessor

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blip_recipe.models.attention import StockModel
    from blip_recipe.models.loading import CaptionSettings

# The rest of blip_recipe is imported where it is used: this module comes along with every `transformers.pipelines`.
SINGLE_IMAGE = (str, bytes, Path, Mapping, Image.Image, np.ndarray)


def offer_task(task: str, pipeline_class: type, loader: Any, default_model: str) -> None:
    """Register `task`, and keep transformers 5.19 and later from renaming or refusing it first.

    Args:
        task: As `transformers.pipeline` takes it.
        pipeline_class: What is made for it.
        loader: What a model is loaded by: has `from_pretrained`.
        default_model: The Hub id that is used where no model is named.
    """
    from transformers import pipelines

    pipelines.PIPELINE_REGISTRY.register_pipeline(
        task,
        pipeline_class=pipeline_class,
        pt_model=loader,
        default={"model": (default_model, "main")},
        type="multimodal",
    )
    if hasattr(pipelines, "_resolve_deprecated_task"):

        @wrapt.patch_function_wrapper(pipelines, "_resolve_deprecated_task")
        def keep_task(resolve: Callable[..., str], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
            return task if task in (*args, *kwargs.values()) else resolve(*args, **kwargs)


def decoding_arguments(settings: CaptionSettings, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: those of `explicit`, and the model's own settings for what is left open."""
    if "generation_config" in explicit:
        return dict(explicit)
    arguments: dict[str, Any] = {
        # The original samples without beams (`models/blip.py`, BLIP_Decoder.generate).
        "num_beams": 1 if explicit.get("do_sample") else settings.num_beams,
        "max_length": settings.max_length,
        "min_length": settings.min_length,
    }
    if "max_new_tokens" in explicit:
        del arguments["max_length"]
    if "min_new_tokens" in explicit:
        del arguments["min_length"]
    return arguments | dict(explicit)


def split_hub_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `pipeline` hands to a model: where on the Hub it is, and the rest."""
    # transformers resolves an adapter's revision for its base model: the plain name of it holds for both.
    hub = {
        "revision": None if kwargs.get("revision") is None else str(kwargs["revision"]),
        "token": kwargs.get("token"),
        "local_files_only": kwargs.get("local_files_only", False),
        "trust_remote_code": bool(kwargs.get("trust_remote_code", False)),
    }
    return hub, {key: value for key, value in kwargs.items() if key not in hub and not key.startswith("_")}


def load_blip_model(
    name: str,
    hub: dict[str, Any],
    task: str,
    *,
    dtype: Any = "auto",
    device_map: Any = None,
    quantization_config: Any = None,
    allow_pickle: bool = False,
    model_class: type[StockModel] | None = None,
    **unknown: Any,
) -> Any:
    """The BLIP `name` as `pipeline(task)` asks for it: a captioner, or one of `model_class`.

    Raises:
        RecipeError: It cannot be loaded, or not with these arguments.
    """
    if unknown:
        raise RecipeError(
            f"model_kwargs has {', '.join(sorted(unknown))}: expected dtype, device_map, quantization_config or "
            "allow_pickle. "
            f"Load the model yourself and hand it over: pipeline({task!r}, model=model, processor=processor)."
        )
    quantization: Any = "recorded"
    if quantization_config is not None:
        quantization = "8bit" if quantization_config.load_in_8bit else "4bit"
    # A quantised model is best loaded where it runs; the pipeline moves it if another device was asked for.
    device = _device_of(device_map) or first_device()
    wishes = {"dtype": dtype, "quantization": quantization, "allow_pickle": allow_pickle}
    if model_class is not None:
        wishes["model_class"] = model_class
    return load_with_its_own(name, device=device, **wishes, **hub)


def load_with_its_own(name: str, **arguments: Any) -> Any:
    """The model that `load_captioner` gives, with its processor and settings on it."""
    from blip_recipe.models.loading import load_captioner

    # It raises no OSError, which transformers would answer with a try by its stock class, which reads pickle files.
    model, processor, settings = load_captioner(name, **arguments)
    return with_its_own(model, processor, settings)


def with_its_own(model: Any, processor: Any, settings: CaptionSettings | None = None) -> Any:
    """`model` with its processor and settings on it: transformers hands nothing but the model to a pipeline."""
    model.captioning_processor = processor
    if settings is not None:
        model.caption_settings = settings
    return model


def _device_of(device_map: Any) -> str | None:
    """The one device of a `device_map`; None when it leaves the choice open."""
    device = device_map.get("") if isinstance(device_map, dict) else device_map
    return None if device in (None, "auto", "balanced", "balanced_low_0", "sequential") else str(device)


def usable_device(device: Any) -> torch.device:
    """`device`, once it is sure that it can be used.

    Raises:
        RecipeError: It cannot.
    """
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise RecipeError(
            f"device is {str(device)!r}, which cannot be used: {error} Leave it out for the first "
            "accelerator or the CPU."
        ) from error


def first_device() -> str:
    """The first accelerator, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else f"{accelerator.type}:0"


def choose_processor(model: Any, tokenizer: Any, image_processor: Any, processor: Any) -> tuple[Any, Any]:
    """Tokenizer and image processor: what the caller gave (objects or names), else what came with the model."""
    from blip_recipe.models.processors import load_processor

    if isinstance(processor, str):
        processor = load_processor(processor)
    processor = processor or getattr(model, "captioning_processor", None)
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if isinstance(image_processor, str):
        image_processor = BlipImageProcessor.from_pretrained(image_processor)
    if processor is None and (tokenizer is None or image_processor is None):
        raise ValueError("A model that is loaded already needs `processor`, or `tokenizer` and `image_processor`.")
    return tokenizer or processor.tokenizer, image_processor or processor.image_processor
