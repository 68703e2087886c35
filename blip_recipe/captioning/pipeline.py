"""The `image-to-text` pipeline for transformers 5, registered when this module is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from blip_recipe.captioning.modeling import BlipForCaptioning, mean_log_probs
from blip_recipe.captioning.sampling import seeded_sampling
from blip_recipe.models.adapters import is_adapted
from blip_recipe.models.captioner import generate_token_ids
from blip_recipe.models.decoding import check_caption_decoding, decoding_arguments
from blip_recipe.models.loading import read_repository_json
from blip_recipe.models.pipeline import (
    SINGLE_IMAGE,
    BlipPipeline,
    attach_processor,
    load_blip_model,
    register_pipeline,
    split_hub_arguments,
)
from blip_recipe.models.processors import read_pixel_values
from blip_recipe.models.text import decode_texts
from blip_recipe.models.threads import Batch, Result, map_batches
from blip_recipe.models.vision import encode_images

if TYPE_CHECKING:
    from pathlib import Path


class ImageToTextPipeline(BlipPipeline, Pipeline):
    """Caption pictures with the prompt and decoding of the model's `recipe.json`, as in its evaluation.

    Takes a path, URL, `PIL.Image`, array or `{"bytes", "path"}`, a list or column of these, a generator, or a torch or
    `datasets` data set whose rows have an `image`. A picture gives `[{"generated_text": ...}, ...]`, one entry per
    caption. Lists give lists; generators and data sets give an iterator.

    Args of the constructor or of a call (a call takes precedence):
        prompt: Text that every caption starts with, instead of the recipe's prompt. As in transformers 4.57 it is part
            of `generated_text`; the recipe's prompt is not.
        max_new_tokens, num_beams, num_return_sequences, do_sample, temperature, repetition_penalty, ..., or a
            dictionary of them as `generate_kwargs`: Decoding arguments; by default those of the recipe.
        seed: With `do_sample`, the seed of the sampled captions. They then depend only on the seed and the picture, not
            on the batch or the order.
        timeout: Seconds to wait for a URL (default 30).
        batch_size, num_workers: As in every pipeline.
    """

    task_name = "image-to-text"
    model_class = BlipForCaptioning

    def __new__(cls, model: Any, **kwargs: Any) -> Any:
        """Build this pipeline for BLIP, and transformers' `image-text-to-text` pipeline for any other model."""
        if isinstance(model.config, BlipConfig):
            return super().__new__(cls)
        kwargs["processor"] = kwargs.get("processor") or getattr(model, "own_processor", None)
        return ImageTextToTextPipeline(model=model, **kwargs | {"task": "image-text-to-text"})

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Caption the pictures `inputs`, which may also be passed as `images`."""
        images = kwargs.pop("images", inputs)
        if images is None:
            raise ValueError("inputs is missing: expected a path, a URL, a PIL.Image, or several of them.")
        if isinstance(images, (*SINGLE_IMAGE, GeneratorType, torch.utils.data.Dataset)):
            return super().__call__(images, **kwargs)
        if isinstance(images, list) and images:
            return super().__call__(images, **kwargs)
        # A generator is read picture by picture; a column or data set would be decoded at once.
        captions = super().__call__((image for image in images), **kwargs)
        return list(captions) if isinstance(images, Sequence) else captions

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        timeout: float | None = None,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **decoding: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = self.decoding_parameters(decoding, max_new_tokens, generate_kwargs)
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"`prompt` is a {type(prompt).__name__}: expected one text for all pictures.")
        if prompt is not None:
            forward["prompt"] = prompt
        if seed is not None:
            forward["seed"] = seed
        return {} if timeout is None else {"timeout": timeout}, forward, {}

    def preprocess(  # type: ignore[override]
        self, image: Any, timeout: float | None = None
    ) -> dict[str, Any]:
        """Open one picture upright and in RGB, as `pixel_values` `(1, 3, height, width)`."""
        if isinstance(image, Mapping) and "image" in image:
            image = image["image"]
        return {"pixel_values": read_pixel_values(image, self.image_processor, timeout)}

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, torch.Tensor], prompt: str | None = None, **decoding: Any
    ) -> dict[str, torch.Tensor]:
        """Generate `token_ids` `(pictures, captions, tokens)`."""
        pixel_values = model_inputs["pixel_values"]
        token_ids = self._generate(pixel_values, pixel_values, prompt, **decoding)
        return {"token_ids": self._with_given_prompt(token_ids, prompt)}

    def _generate(
        self,
        pixel_values: torch.Tensor,
        images: torch.Tensor,
        prompt: str | None = None,
        seed: int | None = None,
        **decoding: Any,
    ) -> torch.Tensor:
        """Generate the token ids `(pictures, captions, tokens)` that follow the prompt.

        `images` are the pixels, or embeddings of them.
        """
        arguments = decoding_arguments(self.settings, decoding)
        if seed is not None:
            arguments = seeded_sampling(pixel_values, seed, arguments)
        prompt = self.settings.prompt if prompt is None else prompt
        token_ids = generate_token_ids(self.model, self.tokenizer, images, prompt, **arguments)
        return token_ids.view(len(images), -1, token_ids.shape[-1])

    def _with_given_prompt(self, token_ids: torch.Tensor, prompt: str | None) -> torch.Tensor:
        """Put a prompt that is not the recorded one before `token_ids` `(pictures, captions, tokens)`."""
        if prompt is None:
            return token_ids
        prompt_ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        return torch.cat([prompt_ids.to(token_ids).expand(*token_ids.shape[:2], -1), token_ids], dim=2)

    def postprocess(self, model_outputs: Any, **_: Any) -> list[dict[str, str]]:
        """Decode the captions of one picture, each as `{"generated_text": ...}`."""
        captions = decode_texts(self.tokenizer, model_outputs["token_ids"][0])
        return [{"generated_text": caption} for caption in captions]

    def check_decoding(self) -> None:
        """Check that the arguments of the constructor fit the model, its prompt and each other.

        Raises:
            RecipeError: They do not. The message names them as options of the caption command.
        """
        given = {name: value for name, value in self._forward_params.items() if name not in ("prompt", "seed")}
        prompt = self._forward_params.get("prompt", self.settings.prompt)
        prompt_length = len(self.tokenizer(prompt).input_ids) - 1  # without the end token
        positions = self.model.config.text_config.max_position_embeddings
        check_caption_decoding(self.settings, given, prompt_length, positions)

    def map_batches(
        self, function: Callable[[Batch], Result], batches: Iterable[Batch], count: int | None = None
    ) -> Iterator[tuple[Batch, Result]]:
        """Yield `(batch, function(batch))` in order; a CPU computes several of the `count` batches at once."""
        return map_batches(function, batches, self.model, count)

    @torch.inference_mode()
    def caption_pixels(
        self, pixel_values: Sequence[torch.Tensor], *, with_scores: bool = False
    ) -> tuple[list[list[str]], list[list[float]] | None]:
        """Caption preprocessed pictures with the decoding of the constructor.

        Args:
            pixel_values: Tensors `(1, 3, height, width)`.
            with_scores: Whether to return the mean log-probability per token of each caption (`mean_log_probs`).

        Returns:
            The captions of each picture, and their scores or None.
        """
        decoding: dict[str, Any] = dict(self._forward_params)
        prompt = decoding.get("prompt")
        with self.device_placement():
            pixels = images = torch.cat(list(pixel_values)).to(self.device)
            if with_scores:
                model: Any = self.model
                model = model.get_base_model() if is_adapted(model) else model
                images = encode_images(model.vision_model, pixels)
            token_ids = self._generate(pixels, images, **decoding)
            scores = None
            if with_scores:
                begin = self.settings.prompt if prompt is None else prompt
                scores = mean_log_probs(self.model, self.tokenizer, images, begin, token_ids).tolist()
        token_ids = self._with_given_prompt(token_ids, prompt)
        return [decode_texts(self.tokenizer, each) for each in token_ids], scores


def caption_pipeline(model: str | Path, **arguments: Any) -> ImageToTextPipeline:
    """Load the pipeline of a BLIP captioner, full or adapter.

    Args:
        model (`str` or `Path`): Directory or Hub id of a captioner trained here, or of any BLIP captioner.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*): Hub token; by default that of the environment.
        device (`str` or `torch.device`, *optional*): The device; by default the first accelerator, else the CPU.
        dtype (`torch.dtype` or `str`, defaults to `"auto"`): Precision of the weights; `"auto"`: that of the files.
        quantization (`str`, *optional*, defaults to `"recorded"`): `"8bit"`, `"4bit"` or `None`; `"recorded"` loads
            the base of an adapter in the precision it was trained on.
        allow_pickle (`bool`, defaults to `False`): Whether to also read weights in pickle files (tensors only).
        trust_remote_code (`bool`, defaults to `False`): Whether to run code that comes with the configuration.
        local_files_only (`bool`, defaults to `False`): Whether to use local files only.
        arguments: Arguments of the pipeline: `batch_size`, `prompt`, `num_beams`, ...

    Returns:
        A pipeline that takes pictures (a path, URL, `PIL.Image`, or several) and gives `[{"generated_text": ...}]` for
        each.

    Raises:
        RecipeError: The model cannot be loaded, or is not a BLIP captioner.

    Example:
        ```python
        from blip_recipe import caption_pipeline

        captioner = caption_pipeline("outputs/my_captioner")
        print(captioner("photo.jpg")[0]["generated_text"])
        ```
    """
    return ImageToTextPipeline.load(model, **arguments)


class AutoCaptioner:
    """The model loader of this task for `transformers.pipeline`."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> Any:
        """Load the model `name` with its processor and, for BLIP, its decoding settings attached.

        `kwargs` are those of `pipeline(model_kwargs=...)`.

        Raises:
            RecipeError: The model cannot be loaded.
        """
        hub, kwargs = split_hub_arguments(kwargs)
        if _is_blip(name, **hub):
            return load_blip_model(name, hub, ImageToTextPipeline.task_name, model_class=BlipForCaptioning, **kwargs)
        model = AutoModelForImageTextToText.from_pretrained(name, **hub, **kwargs)
        return attach_processor(model, AutoProcessor.from_pretrained(name, **hub))


def _is_blip(name: str, *, revision: str | None, trust_remote_code: bool, **hub: Any) -> bool:
    """Whether `name`, or its base model if it is an adapter, is a BLIP model."""
    adapter = read_repository_json(name, "adapter_config.json", revision=revision, **hub)
    if adapter:
        name, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **hub)
    return isinstance(config, BlipConfig)


DEFAULT_MODEL = "Salesforce/blip-image-captioning-base"
register_pipeline(pipelines, ImageToTextPipeline.task_name, ImageToTextPipeline, AutoCaptioner, DEFAULT_MODEL)
