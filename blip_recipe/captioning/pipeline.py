"""The task `image-to-text` for transformers 5: registered when this is imported (`import blip_recipe` sees to it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BlipConfig,
    ImageTextToTextPipeline,
    Pipeline,
    pipelines,
)

from blip_recipe.captioning.modeling import BlipForCaptioning, generate_token_ids
from blip_recipe.data.images import open_image
from blip_recipe.models.loading import read_repository_json
from blip_recipe.models.pipeline import (
    SINGLE_IMAGE,
    BlipPipeline,
    attach_processor,
    decoding_arguments,
    load_blip_model,
    register_pipeline,
    split_hub_arguments,
)
from blip_recipe.models.text import decode_texts

if TYPE_CHECKING:
    from pathlib import Path


class ImageToTextPipeline(BlipPipeline, Pipeline):
    """Captions pictures as the model's own evaluation did: with the prompt and decoding of its `recipe.json`.

    Takes a path, URL, `PIL.Image`, array or `{"bytes", "path"}`, a list or column of these, a generator, a torch or
    `datasets` data set (whose rows have an `image`). A picture gives `[{"generated_text": ...}, ...]`, one entry a
    caption; lists give lists, generators and data sets give their results one by one.

    Args to the constructor or to a call, where the call wins:
        prompt: Words every caption starts with, instead of the recipe's; as in transformers 4.57 they are part of
            `generated_text`, while a recipe's prompt is not.
        max_new_tokens, num_beams, num_return_sequences, ..., or a dictionary of them as `generate_kwargs`: decoding;
            what is left out is the recipe's.
        timeout: Seconds to wait for a URL (default 30).
        batch_size, num_workers: As in every pipeline.
    """

    task_name = "image-to-text"
    model_class = BlipForCaptioning

    def __new__(cls, model: Any, **kwargs: Any) -> Any:
        """This pipeline for BLIP; for any other model what transformers 5 makes of this task: image-text-to-text."""
        if isinstance(model.config, BlipConfig):
            return super().__new__(cls)
        kwargs["processor"] = kwargs.get("processor") or getattr(model, "own_processor", None)
        return ImageTextToTextPipeline(model=model, **kwargs | {"task": "image-text-to-text"})

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Captions of the pictures `inputs`, which may also be named `images`."""
        images = kwargs.pop("images", inputs)
        if images is None:
            raise ValueError("image-to-text needs pictures: a path, a URL, a PIL.Image, or several of them.")
        if isinstance(images, (*SINGLE_IMAGE, GeneratorType, torch.utils.data.Dataset)):
            return super().__call__(images, **kwargs)
        if isinstance(images, list) and images:
            return super().__call__(images, **kwargs)
        # A generator is read picture by picture, where a column or data set would be decoded whole.
        captions = super().__call__((image for image in images), **kwargs)
        return list(captions) if isinstance(images, Sequence) else captions

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        timeout: float | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **decoding: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = self.decoding_parameters(decoding, max_new_tokens, generate_kwargs)
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"`prompt` is a {type(prompt).__name__}: expected one text, which all pictures share.")
        if prompt is not None:
            forward["prompt"] = prompt
        return {} if timeout is None else {"timeout": timeout}, forward, {}

    def preprocess(  # type: ignore[override]
        self, image: Any, timeout: float | None = None
    ) -> dict[str, Any]:
        """`pixel_values` `(1, 3, height, width)` of one picture, upright and in RGB."""
        if isinstance(image, Mapping) and "image" in image:
            image = image["image"]
        return {
            "pixel_values": self.image_processor(open_image(image, timeout=timeout), return_tensors="pt").pixel_values
        }

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, torch.Tensor], prompt: str | None = None, **decoding: Any
    ) -> dict[str, torch.Tensor]:
        """`token_ids` `(pictures, captions, tokens)`."""
        pixel_values = model_inputs["pixel_values"]
        recorded = prompt is None
        prompt = self.settings.prompt if prompt is None else prompt
        token_ids = generate_token_ids(
            self.model, self.tokenizer, pixel_values, prompt, **decoding_arguments(self.settings, decoding)
        )
        if not recorded:
            prompt_ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
            prompt_ids = prompt_ids.to(token_ids).expand(len(token_ids), -1)
            token_ids = torch.cat([prompt_ids, token_ids], dim=1)
        return {"token_ids": token_ids.view(len(pixel_values), -1, token_ids.shape[-1])}

    def postprocess(self, model_outputs: Any, **_: Any) -> list[dict[str, str]]:
        """One `{"generated_text": ...}` a caption of the picture."""
        captions = decode_texts(self.tokenizer, model_outputs["token_ids"][0])
        return [{"generated_text": caption} for caption in captions]

    def caption_pixels(self, pixel_values: torch.Tensor) -> list[str]:
        """A caption for each of `pixel_values` `(pictures, 3, height, width)`, which `preprocess` has made."""
        token_ids = self.forward({"pixel_values": pixel_values}, **self._forward_params)["token_ids"]
        return [self.postprocess({"token_ids": each[None]})[0]["generated_text"] for each in token_ids]


def caption_pipeline(model: str | Path, **arguments: Any) -> ImageToTextPipeline:
    """Load the pipeline of a BLIP captioner, full or adapter, without touching transformers.

    Args:
        model (`str` or `Path`): Directory or Hub id of what was trained here, or of any BLIP captioner.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*): Token of the Hub; by default that of the environment.
        device (`str` or `torch.device`, *optional*): Where it runs; by default the first accelerator, else the CPU.
        dtype (`torch.dtype` or `str`, defaults to `"auto"`): Precision of the weights; `"auto"` is that of the files.
        quantization (`str`, *optional*, defaults to `"recorded"`): `"recorded"` puts an adapter on the base it was
            trained on (8-bit, 4-bit or full); `None` is full.
        allow_pickle (`bool`, defaults to `False`): Read weights in pickle files too, of which only tensors are taken.
        trust_remote_code (`bool`, defaults to `False`): Run code that comes with the model's configuration.
        local_files_only (`bool`, defaults to `False`): Ask no Hub.
        arguments: Those of the pipeline: `batch_size`, `prompt`, `num_beams`, ...

    Returns:
        A pipeline that takes pictures (a path, URL, `PIL.Image`, or several) and gives `[{"generated_text": ...}]` for
        each.

    Raises:
        RecipeError: It cannot be loaded, or is not a BLIP captioner.

    Example:
        ```python
        from blip_recipe import caption_pipeline

        captioner = caption_pipeline("outputs/my_captioner")
        print(captioner("photo.jpg")[0]["generated_text"])
        ```
    """
    return ImageToTextPipeline.load(model, **arguments)


class AutoCaptioner:
    """How `transformers.pipeline` loads a model for this task: as training's own evaluation does."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> Any:
        """The model `name`, with its processor and, for BLIP, its decoding set on it.

        `kwargs` are those that `pipeline(model_kwargs=...)` hands to a model.

        Raises:
            RecipeError: It cannot be loaded.
        """
        hub, kwargs = split_hub_arguments(kwargs)
        if _is_blip(name, **hub):
            return load_blip_model(name, hub, ImageToTextPipeline.task_name, model_class=BlipForCaptioning, **kwargs)
        model = AutoModelForImageTextToText.from_pretrained(name, **hub, **kwargs)
        return attach_processor(model, AutoProcessor.from_pretrained(name, **hub))


def _is_blip(name: str, *, revision: str | None, trust_remote_code: bool, **hub: Any) -> bool:
    """Whether `name`, or the base model of the adapter `name`, is a BLIP model."""
    adapter = read_repository_json(name, "adapter_config.json", revision=revision, **hub)
    if adapter:
        name, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **hub)
    return isinstance(config, BlipConfig)


DEFAULT_MODEL = "Salesforce/blip-image-captioning-base"
register_pipeline(pipelines, ImageToTextPipeline.task_name, ImageToTextPipeline, AutoCaptioner, DEFAULT_MODEL)
