"""The task `image-to-text` for transformers 5: registered when this is imported (`import blip_recipe` sees to it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BlipConfig,
    ImageTextToTextPipeline,
    Pipeline,
)

from blip_recipe.models.pipeline import (
    SINGLE_IMAGE,
    choose_processor,
    decoding_arguments,
    first_device,
    load_blip_model,
    load_with_its_own,
    offer_task,
    split_hub_arguments,
    usable_device,
    with_its_own,
)

if TYPE_CHECKING:
    from blip_recipe.models.loading import CaptionSettings

# The rest of blip_recipe is imported where it is used: this module comes along with every `transformers.pipelines`.
TASK = "image-to-text"


class ImageToTextPipeline(Pipeline):
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

    # The model brings its own processor (AutoCaptioner): for an adapter, transformers would load the base model's.
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_processor: Any = False
    tokenizer: Any
    image_processor: Any

    def __new__(cls, model: Any, **kwargs: Any) -> Any:
        """This pipeline for BLIP; for any other model what transformers 5 makes of this task: image-text-to-text."""
        if isinstance(model.config, BlipConfig):
            return super().__new__(cls)
        kwargs["processor"] = kwargs.get("processor") or getattr(model, "captioning_processor", None)
        return ImageTextToTextPipeline(model=model, **kwargs | {"task": "image-text-to-text"})

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        image_processor: Any = None,
        processor: Any = None,
        local_files_only: bool = False,  # transformers hands it on when everything is loaded
        **kwargs: Any,
    ) -> None:
        from blip_recipe.models.loading import CaptionSettings

        self.settings: CaptionSettings = getattr(model, "caption_settings", CaptionSettings())
        tokenizer, image_processor = choose_processor(model, tokenizer, image_processor, processor)
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor, **kwargs)
        self.model.eval()

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
        decoding |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        if twice := sorted(decoding.keys() & (generate_kwargs or {}).keys()):
            raise ValueError(f"{', '.join(twice)} given twice: as an argument and in `generate_kwargs`. Use one.")
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"`prompt` is a {type(prompt).__name__}: expected one text, which all pictures share.")
        forward = decoding | (generate_kwargs or {})
        if prompt is not None:
            forward["prompt"] = prompt
        return {} if timeout is None else {"timeout": timeout}, forward, {}

    def preprocess(  # type: ignore[override]
        self, image: Any, timeout: float | None = None
    ) -> dict[str, Any]:
        """`pixel_values` `(1, 3, height, width)` of one picture, upright and in RGB."""
        from blip_recipe.data import open_image

        if isinstance(image, Mapping) and "image" in image:
            image = image["image"]
        return {
            "pixel_values": self.image_processor(open_image(image, timeout=timeout), return_tensors="pt").pixel_values
        }

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, torch.Tensor], prompt: str | None = None, **decoding: Any
    ) -> dict[str, torch.Tensor]:
        """`token_ids` `(pictures, captions, tokens)`."""
        from blip_recipe.captioning.modeling import generate_token_ids

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
        captions = self.tokenizer.batch_decode(model_outputs["token_ids"][0], skip_special_tokens=True)
        return [{"generated_text": caption.strip()} for caption in captions]

    def caption_pixels(self, pixel_values: torch.Tensor) -> list[str]:
        """A caption for each of `pixel_values` `(pictures, 3, height, width)`, which `preprocess` has made."""
        token_ids = self.forward({"pixel_values": pixel_values}, **self._forward_params)["token_ids"]
        return [self.postprocess({"token_ids": each[None]})[0]["generated_text"] for each in token_ids]


def caption_pipeline(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: Any = None,
    dtype: Any = "auto",
    quantization: Literal["recorded", "8bit", "4bit"] | None = "recorded",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    **arguments: Any,
) -> ImageToTextPipeline:
    """The pipeline for a BLIP captioner (a directory or Hub id; full or adapter), without touching transformers.

    Args:
        model: What was trained here, or any BLIP captioner.
        device: Where it runs; the first accelerator, else the CPU, when left out.
        dtype: Precision of the weights, `"auto"` for that of the files.
        quantization: `"recorded"` puts an adapter on the base it was trained on (8-bit, 4-bit or full); `None` is full.
        allow_pickle: Also read weights in pickle files, of which nothing but tensors is taken.
        trust_remote_code: Run code that comes with the model's configuration.
        arguments: Those of `ImageToTextPipeline`: `batch_size`, `prompt`, `num_beams`, ...

    Raises:
        RecipeError: It cannot be loaded, or is not a BLIP captioner.
    """
    device = usable_device(device if device is not None else first_device())
    captioner = load_with_its_own(
        str(model),
        revision=revision,
        token=token,
        device=device,
        dtype=dtype,
        quantization=quantization,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        local_files_only=local_files_only,
    )
    return ImageToTextPipeline(model=captioner, task=TASK, device=device, **arguments)


class AutoCaptioner:
    """How `transformers.pipeline` loads a model for this task: as training's own evaluation does."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> Any:
        """The model `name`, with its `captioning_processor` and, for BLIP, its `caption_settings` set on it.

        `kwargs` are those that `pipeline(model_kwargs=...)` hands to a model.

        Raises:
            RecipeError: It cannot be loaded.
        """
        hub, kwargs = split_hub_arguments(kwargs)
        if _is_blip(name, **hub):
            return load_blip_model(name, hub, TASK, **kwargs)
        model = AutoModelForImageTextToText.from_pretrained(name, **hub, **kwargs)
        return with_its_own(model, AutoProcessor.from_pretrained(name, **hub))


def _is_blip(name: str, *, revision: str | None, trust_remote_code: bool, **hub: Any) -> bool:
    """Whether `name`, or the base model of the adapter `name`, is a BLIP model."""
    from blip_recipe.models.loading import read_repository_json

    adapter = read_repository_json(name, "adapter_config.json", revision=revision, **hub)
    if adapter:
        name, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **hub)
    return isinstance(config, BlipConfig)


offer_task(TASK, ImageToTextPipeline, AutoCaptioner, "Salesforce/blip-image-captioning-base")
