"""Load a BLIP: a base model for training, or a trained model (full or adapter) for inference."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import PartialState
from transformers import AutoConfig, BlipConfig, PreTrainedConfig
from transformers.image_utils import SizeDict
from transformers.utils import cached_file

from blip_recipe.errors import RecipeError
from blip_recipe.models.adapters import quantization_config, recorded_quantization
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.models.linear import use_onednn
from blip_recipe.models.processors import load_processor
from blip_recipe.models.threads import fit_threads
from blip_recipe.models.vision import resize_position_embeddings
from blip_recipe.models.weights import explain_weight_errors, find_weights, first_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BlipProcessor

    from blip_recipe.models.arguments import Quantization
    from blip_recipe.models.stock import StockModel

KINDS = {
    "BlipForConditionalGeneration": ("captioner", "Salesforce/blip-image-captioning-base"),
    "BlipForQuestionAnswering": ("question answerer", "Salesforce/blip-vqa-base"),
    "BlipForImageTextRetrieval": ("retrieval model", "Salesforce/blip-itm-base-coco"),
}
"""A name and an example model for each stock class, for error messages."""


def load_blip(
    name: str,
    model_class: type[StockModel],
    *,
    quantization: Quantization | None = None,
    dtype: Any = "auto",
    device: Any = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    **hub: Any,
) -> Any:
    """Load a full model of `model_class` from a directory or a Hub id to `device`.

    `hub` is passed to `from_pretrained`: `revision`, `token`, `local_files_only`. Weights are read from safetensors.
    Pickle files are read only with `allow_pickle`, and only their tensors (`torch.load(weights_only=True)`).

    Raises:
        RecipeError: The weights are missing or damaged, or are pickle files and `allow_pickle` is false.
    """
    weights = find_weights(name, "model", allow_pickle=allow_pickle, **hub)
    in_safetensors = ".safetensors" in weights.suffixes
    if not in_safetensors:
        # Otherwise transformers asks a service to convert the repository and to open a pull request there.
        os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    load = hub | {"dtype": dtype, "trust_remote_code": trust_remote_code, "use_safetensors": in_safetensors}
    if quantization is not None:
        place = {"": device or PartialState().device}
        load |= {"quantization_config": quantization_config(quantization), "device_map": place}
    with explain_weight_errors(name):
        model = model_class.from_pretrained(name, **load)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On CPUs with AVX512-BF16, bitsandbytes packs the weights of 4-bit layers at the first evaluation. From
            # then on, their inputs are rounded to bfloat16 and they have no gradient.
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if device is not None and quantization is None:
        model.to(device)
    return model


def find_stock_class(name: str, *, trust_remote_code: bool = False, **hub: Any) -> str:
    """The name of the stock class of a model or of an adapter's base, one of `KINDS`.

    Raises:
        RecipeError: There is no such model, or it is of another kind.
    """
    adapter = read_repository_json(name, "adapter_config.json", **hub)
    if adapter:
        name, hub = adapter["base_model_name_or_path"], hub | {"revision": adapter.get("revision")}
    config = _load_config(name, trust_remote_code=trust_remote_code, **hub)
    found = (config.architectures or ["no class"])[0]
    if not isinstance(config, BlipConfig) or found not in KINDS:
        kinds = " or ".join(f"a {kind} (such as {example})" for kind, example in KINDS.values())
        raise RecipeError(
            f"The model is {name!r}, a {found} of type {config.model_type!r}: expected a BLIP (model type 'blip'), "
            f"{kinds}."
        )
    return found


def _load_config(name: str, **arguments: Any) -> PreTrainedConfig:
    """Load the configuration of a model.

    Raises:
        RecipeError: There is no such model, or it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(name, **arguments)
    except (OSError, ValueError) as error:
        own_code = "trust_remote_code" in str(error)
        advice = " Read that code first; to run it, set trust_remote_code (--trust_remote_code)." if own_code else ""
        raise RecipeError(
            f"model_name_or_path is {name!r}, which cannot be loaded: {first_line(error)}{advice}"
        ) from error


def check_is_blip(name: str, model_class: type[StockModel], **hub: Any) -> PreTrainedConfig:
    """Load the configuration of `name` and check that it fits `model_class`.

    Raises:
        RecipeError: There is no such model, it cannot be read, or it is of another class.
    """
    config = _load_config(name, **hub)
    accepted = [each.__name__ for each in (model_class.stock_class, *model_class.other_stock_classes)]
    kinds, (_, example) = [KINDS[each][0] for each in accepted], KINDS[accepted[0]]
    if not isinstance(config, BlipConfig):
        raise RecipeError(
            f"model_name_or_path is {name!r}, a model of type {config.model_type!r}: expected a BLIP "
            f"{' or '.join(kinds)} (model type 'blip'), such as {example}."
        )
    architecture = (config.architectures or accepted)[0]
    if architecture not in accepted:
        expected = " or ".join(f"{kind} ({each})" for kind, each in zip(kinds, accepted, strict=True))
        raise RecipeError(
            f"model_name_or_path is {name!r}, a {architecture}: expected a {expected}, such as {example}."
        )
    return config


def load_base(
    name: str,
    model_class: type[StockModel],
    *,
    revision: str | None = None,
    quantization: Quantization | None = None,
    image_size: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, BlipProcessor]:
    """Load a base model for training, in float32 or quantised, and its processor.

    Args:
        name: Directory or Hub id.
        model_class: The class of the model.
        revision: Branch, tag or commit.
        quantization: The quantisation of a frozen base model.
        image_size: Height and width of the input in pixels; by default the model's own.
        trust_remote_code: Whether to run code that comes with the model's configuration.

    Raises:
        RecipeError: There is no such model, it is an adapter, or it does not fit `model_class`.
    """
    if read_repository_json(name, "adapter_config.json", revision=revision):
        raise RecipeError(
            f"model_name_or_path is {name!r}, an adapter: expected a full model. Merge the adapter first with "
            f"`python -m blip_recipe.merge {name} OUT`, and train OUT."
        )
    check_is_blip(name, model_class, trust_remote_code=trust_remote_code, revision=revision)
    # Train weights in float32, whatever they were saved in; bf16 is done by Trainer's autocast.
    model = load_blip(
        name,
        model_class,
        quantization=quantization,
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )
    processor = load_processor(name, revision=revision)
    if image_size is not None:
        resize_position_embeddings(model, image_size)
        processor.image_processor.size = SizeDict(height=image_size, width=image_size)
    return model, processor


def load_finished(
    name: str,
    model_class: type[StockModel],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: Any = None,
    dtype: Any = "auto",
    quantization: Literal["recorded", "8bit", "4bit"] | None = "recorded",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> tuple[Any, BlipProcessor, DecodingSettings]:
    """Load a trained model, full or adapter, with its processor and the settings it was scored with.

    With `quantization="recorded"`, the base of an adapter is loaded in the precision it was trained on (8-bit, 4-bit or
    full), because that model was scored. `None` loads the base in full precision. Weights in pickle files are read only
    with `allow_pickle`, and code that comes with a model is run only with `trust_remote_code`. The number of torch's
    threads follows the size of the model (`fit_threads`), and its products the processor (`use_onednn`).

    Raises:
        RecipeError: The model cannot be loaded, or does not fit `model_class`.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": local_files_only}
    recipe = read_repository_json(name, "recipe.json", **hub)
    adapter = read_repository_json(name, "adapter_config.json", **hub)
    if quantization == "recorded":
        quantization = recorded_quantization(recipe) if adapter else None
    load: dict[str, Any] = {
        "quantization": quantization,
        "dtype": dtype,
        "device": device,
        "allow_pickle": allow_pickle,
        "trust_remote_code": trust_remote_code,
    }
    if adapter:
        base_name, base_hub = adapter["base_model_name_or_path"], hub | {"revision": adapter.get("revision")}
        check_is_blip(base_name, model_class, trust_remote_code=trust_remote_code, **base_hub)
        processor = load_processor(name, **hub)
        base = load_blip(base_name, model_class, **load, **base_hub)
        if processor.image_processor.size["height"] != base.config.vision_config.image_size:
            resize_position_embeddings(base, processor.image_processor.size["height"])
        model: Any = _with_adapter(base, name, device, allow_pickle, **hub)
    else:
        check_is_blip(name, model_class, trust_remote_code=trust_remote_code, **hub)
        processor = load_processor(name, **hub)
        model = load_blip(name, model_class, **load, **hub)
    model.use_sdpa()
    fit_threads(model)
    use_onednn(model)
    return model.eval(), processor, recorded_decoding(recipe, model_class)


def recorded_decoding(recipe: dict[str, Any], model_class: type[StockModel]) -> DecodingSettings:
    """The prompt and decoding of a model's `recipe.json`; missing keys have the defaults of `model_class`."""
    usual = DecodingSettings(**model_class.decoding)
    keys = {name: f"generation_{name}" for name in asdict(usual) if name != "prompt"}
    recorded = {name: recipe[key] for name, key in keys.items() if key in recipe}
    return replace(usual, **recorded, prompt=recipe.get("prompt", usual.prompt))


def load_merged(adapter: str, model_class: type[StockModel], **hub: Any) -> tuple[Any, BlipProcessor, DecodingSettings]:
    """Load an adapter and merge it into its base in full precision; otherwise like `load_finished`.

    Raises:
        RecipeError: `adapter` is not an adapter of a `model_class`.
    """
    if not read_repository_json(adapter, "adapter_config.json", **hub):
        raise RecipeError(f"{adapter!r} has no adapter_config.json: expected the output directory of a LoRA run.")
    model, processor, settings = load_finished(adapter, model_class, quantization=None, dtype=torch.float32, **hub)
    merged = model.merge_and_unload()
    if merged.can_generate():
        merged.generation_config.update(**settings.generate_kwargs(), _from_model_config=False)
    return merged, processor, settings


def find_repository_file(name: str, filename: str, **hub: Any) -> Path | None:
    """Find a file of a model directory or Hub repository; None if it is missing.

    Raises:
        RecipeError: There is no such directory or repository.
    """
    try:
        path = cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        raise RecipeError(f"The model {name!r} cannot be found: {first_line(error)}") from error
    return Path(path) if path else None


def read_repository_json(name: str, filename: str, **hub: Any) -> dict[str, Any]:
    """Read a JSON file of a model directory or Hub repository; empty if the file is missing.

    Raises:
        RecipeError: There is no such directory or repository.
    """
    path = find_repository_file(name, filename, **hub)
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def _with_adapter(base: StockModel, adapter: str, device: Any, allow_pickle: bool, **hub: Any) -> PeftModel:
    from peft import PeftModel

    weights = find_weights(adapter, "adapter_model", allow_pickle=allow_pickle, **hub)
    with explain_weight_errors(adapter):
        # Pass the local directory: for a Hub id, peft makes requests even with `local_files_only`.
        model = PeftModel.from_pretrained(base, str(weights.parent))
    return model if device is None else model.to(device)
