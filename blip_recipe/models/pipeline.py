"""The base class of the BLIP pipelines, and their registration with transformers."""

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
    # Importing `Pipeline` here would be circular: `transformers.pipelines` triggers the import of the tasks' pipelines,
    # which need this module. They inherit from `Pipeline` themselves.
    Mixin = object

Quantized = Literal["recorded", "8bit", "4bit"]

SINGLE_IMAGE = (str, bytes, Path, Mapping, Image.Image, np.ndarray)


def register_pipeline(pipelines: Any, task: str, pipeline_class: type, loader: Any, default_model: str) -> None:
    """Register `task` with transformers, and keep 5.19 and later from renaming or refusing it.

    Args:
        pipelines: The module `transformers.pipelines`.
        task: The task name for `transformers.pipeline`.
        pipeline_class: The pipeline class of the task.
        loader: A class with `from_pretrained` that loads its models.
        default_model: The Hub id of the default model.
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


def split_hub_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the arguments that `pipeline` passes to a model into Hub arguments and others."""
    # transformers resolves the revision of an adapter for its base model; the plain name is valid for both.
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
    """Load the model `name` of `model_class` for `pipeline(task)`.

    Raises:
        RecipeError: The model cannot be loaded, or an argument is not supported.
    """
    if unknown:
        raise RecipeError(
            f"model_kwargs has {', '.join(sorted(unknown))}: expected dtype, device_map, quantization_config or "
            "allow_pickle. "
            f"Or load the model yourself: pipeline({task!r}, model=model, processor=processor)."
        )
    quantization: Any = "recorded"
    if quantization_config is not None:
        quantization = "8bit" if quantization_config.load_in_8bit else "4bit"
    # Load a quantised model on the device where it runs; the pipeline moves it if another device is given.
    device = _device_of(device_map) or first_device()
    return load_with_settings(
        name, model_class, device=device, dtype=dtype, quantization=quantization, allow_pickle=allow_pickle, **hub
    )


def load_with_settings(name: str, model_class: type[StockModel], **arguments: Any) -> Any:
    """Load a trained model with `load_finished` and attach its processor and settings."""
    # It must not raise OSError: transformers would then try its stock class, which reads pickle files.
    model, processor, settings = load_finished(name, model_class, **arguments)
    return attach_processor(model, processor, settings)


def attach_processor(model: Any, processor: Any, settings: DecodingSettings | None = None) -> Any:
    """Attach processor and settings to `model`: transformers passes only the model to a pipeline."""
    model.own_processor = processor
    if settings is not None:
        model.decoding_settings = settings
    return model


def _device_of(device_map: Any) -> str | None:
    """The single device of a `device_map`; None if it names none."""
    device = device_map.get("") if isinstance(device_map, dict) else device_map
    return None if device in (None, "auto", "balanced", "balanced_low_0", "sequential") else str(device)


def usable_device(device: Any) -> torch.device:
    """Check that `device` can be used.

    Raises:
        RecipeError: It cannot be used.
    """
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise RecipeError(
            f"device is {str(device)!r}, which cannot be used: {error} Leave it out to use the first "
            "accelerator or the CPU."
        ) from error


def first_device() -> str:
    """The first accelerator, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else f"{accelerator.type}:0"


def choose_processor(model: Any, tokenizer: Any, image_processor: Any, processor: Any) -> tuple[Any, Any]:
    """The given tokenizer and image processor (objects or names), or those of the model."""
    if isinstance(processor, str):
        processor = load_processor(processor)
    processor = processor or getattr(model, "own_processor", None)
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if isinstance(image_processor, str):
        image_processor = BlipImageProcessor.from_pretrained(image_processor)
    if processor is None and (tokenizer is None or image_processor is None):
        raise ValueError(
            "`processor` is missing: a loaded model needs `processor`, or `tokenizer` and `image_processor`."
        )
    return tokenizer or processor.tokenizer, image_processor or processor.image_processor


class BlipPipeline(Mixin):
    """The base class of pipelines for BLIP models with their own processor and decoding settings.

    Attributes:
        task_name: The task name for `transformers.pipeline`.
        model_class: The class of the models.
    """

    # The loader attaches the processor to the model: for an adapter, transformers would load the base model's.
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
        local_files_only: bool = False,  # passed by transformers after loading; not needed
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
        """Load the pipeline of a directory or Hub id, full or adapter.

        Raises:
            RecipeError: The model cannot be loaded, or does not fit `model_class`.
        """
        if not isinstance(model, (str, os.PathLike)):
            raise RecipeError(
                f"model is a {type(model).__name__}: expected a directory or a Hub id. For a loaded model, use "
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
        """Merge the arguments of `generate` of a call.

        Raises:
            ValueError: An argument is given twice.
        """
        decoding |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        if twice := sorted(decoding.keys() & (generate_kwargs or {}).keys()):
            raise ValueError(f"{', '.join(twice)} given twice: as an argument and in `generate_kwargs`. Use one.")
        return decoding | (generate_kwargs or {})
