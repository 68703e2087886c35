"""Pipelines of transformers for BLIP: what those of all tasks share, and how they are registered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import wrapt
from PIL import Image
from transformers import AutoTokenizer, BlipImageProcessor

from blip_recipe.errors import RecipeError
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.models.loading import load_finished
from blip_recipe.models.processors import load_processor

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from transformers import Pipeline

    from blip_recipe.models.stock import StockModel

    Mixin = Pipeline
else:
    # `transformers.pipelines` brings the pipelines of the tasks along, which would ask for this module before it is
    # whole: they name that class themselves.
    Mixin = object

Quantized = Literal["recorded", "8bit", "4bit"]

SINGLE_IMAGE = (str, bytes, Path, Mapping, Image.Image, np.ndarray)


def register_pipeline(pipelines: Any, task: str, pipeline_class: type, loader: Any, default_model: str) -> None:
    """Register `task` with transformers, and keep 5.19 and later from renaming or refusing it first.

    Args:
        pipelines: The module `transformers.pipelines`.
        task: As `transformers.pipeline` takes it.
        pipeline_class: What is made for it.
        loader: What a model is loaded by: has `from_pretrained`.
        default_model: The Hub id that is used where no model is named.
    """
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


def decoding_arguments(settings: DecodingSettings, explicit: Mapping[str, Any]) -> dict[str, Any]:
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
    model_class: type[StockModel],
    **unknown: Any,
) -> Any:
    """The BLIP `name`, of `model_class`, as `pipeline(task)` asks for it.

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
    return load_with_settings(
        name, model_class, device=device, dtype=dtype, quantization=quantization, allow_pickle=allow_pickle, **hub
    )


def load_with_settings(name: str, model_class: type[StockModel], **arguments: Any) -> Any:
    """The model that `load_finished` gives, with its processor and settings on it."""
    # It raises no OSError, which transformers would answer with a try by its stock class, which reads pickle files.
    model, processor, settings = load_finished(name, model_class, **arguments)
    return attach_processor(model, processor, settings)


def attach_processor(model: Any, processor: Any, settings: DecodingSettings | None = None) -> Any:
    """`model` with its processor and settings on it: transformers hands nothing but the model to a pipeline."""
    model.own_processor = processor
    if settings is not None:
        model.decoding_settings = settings
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
    if isinstance(processor, str):
        processor = load_processor(processor)
    processor = processor or getattr(model, "own_processor", None)
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if isinstance(image_processor, str):
        image_processor = BlipImageProcessor.from_pretrained(image_processor)
    if processor is None and (tokenizer is None or image_processor is None):
        raise ValueError("A model that is loaded already needs `processor`, or `tokenizer` and `image_processor`.")
    return tokenizer or processor.tokenizer, image_processor or processor.image_processor


class BlipPipeline(Mixin):
    """A pipeline for BLIP models of one kind, which come with their own processor and decoding.

    Attributes:
        task_name: As `transformers.pipeline` takes it.
        model_class: Ours.
    """

    # The model brings its own processor: for an adapter, transformers would load the base model's.
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_processor: Any = False
    tokenizer: Any
    image_processor: Any

    task_name: ClassVar[str]
    model_class: ClassVar[type[StockModel]]

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        image_processor: Any = None,
        processor: Any = None,
        local_files_only: bool = False,  # transformers hands it on when everything is loaded
        **kwargs: Any,
    ) -> None:
        self.settings: DecodingSettings = getattr(
            model, "decoding_settings", DecodingSettings(**self.model_class.decoding)
        )
        tokenizer, image_processor = choose_processor(model, tokenizer, image_processor, processor)
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor, **kwargs)
        self.model.eval()

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: Any = None,
        dtype: Any = "auto",
        quantization: Quantized | None = "recorded",
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        **arguments: Any,
    ) -> Self:
        """The pipeline of a directory or Hub id, full or adapter, without touching transformers.

        Raises:
            RecipeError: It cannot be loaded, or is not a BLIP of this kind.
        """
        if not isinstance(model, (str, os.PathLike)):
            raise RecipeError(
                f"model is a {type(model).__name__}: expected a directory or a Hub id. For a model that is loaded: "
                f"transformers.pipeline({cls.task_name!r}, model=model, processor=processor)."
            )
        device = usable_device(device if device is not None else first_device())
        loaded = load_with_settings(
            str(model),
            cls.model_class,
            revision=revision,
            token=token,
            device=device,
            dtype=dtype,
            quantization=quantization,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            local_files_only=local_files_only,
        )
        return cls(model=loaded, task=cls.task_name, device=device, **arguments)

    @staticmethod
    def decoding_parameters(
        decoding: dict[str, Any], max_new_tokens: int | None, generate_kwargs: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The arguments of `generate` among those of a call.

        Raises:
            ValueError: One is given twice.
        """
        decoding |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        if twice := sorted(decoding.keys() & (generate_kwargs or {}).keys()):
            raise ValueError(f"{', '.join(twice)} given twice: as an argument and in `generate_kwargs`. Use one.")
        return decoding | (generate_kwargs or {})
