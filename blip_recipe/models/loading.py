"""LoRA and quantised loading: the model of a recipe, ready to train, and a saved captioner, ready to caption."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import PartialState
from transformers import BlipConfig, BlipForConditionalGeneration, PreTrainedConfig
from transformers.image_utils import SizeDict
from transformers.utils import cached_file

from blip_recipe.captioning.modeling import BlipForCaptioning, resize_position_embeddings
from blip_recipe.errors import RecipeError
from blip_recipe.models.processors import load_processor
from blip_recipe.models.weights import find_weights, first_line, reading_weights
from blip_recipe.recipe.parsing import TINY_MODEL, Quantization
from blip_recipe.training.task import find_task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from peft import PeftModel
    from transformers import BitsAndBytesConfig, BlipProcessor

    from blip_recipe.models.attention import StockModel
    from blip_recipe.recipe.parsing import GenerationArguments, ModelArguments, Recipe
    from blip_recipe.training.task import Task

KINDS = {
    "BlipForConditionalGeneration": ("captioner", "Salesforce/blip-image-captioning-base"),
    "BlipForQuestionAnswering": ("question answerer", "Salesforce/blip-vqa-base"),
    "BlipForImageTextRetrieval": ("matcher of texts and pictures", "Salesforce/blip-itm-base-coco"),
}
"""What the stock classes are, in words, with a model of each."""


@dataclass
class CaptionSettings:
    """How a saved captioner was scored: its prompt and decoding. The defaults are those of BLIP's COCO captions."""

    prompt: str = ""
    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5

    @classmethod
    def of(cls, recipe: Recipe[Any]) -> CaptionSettings:
        """Those of a recipe."""
        generation = recipe.generation
        return cls(
            recipe.data.prompt,
            generation.generation_num_beams,
            generation.generation_max_length,
            generation.generation_min_length,
        )

    def generate_kwargs(self) -> dict[str, Any]:
        """What `generate` is called with: beam search without sampling."""
        return {
            "num_beams": self.num_beams,
            "max_length": self.max_length,
            "min_length": self.min_length,
            "do_sample": False,
        }


def quantization_config(quantization: Quantization | None) -> BitsAndBytesConfig | None:
    """bitsandbytes settings: LLM.int8() (arXiv 2208.07339), or QLoRA's NF4 with double quantisation (2305.14314)."""
    from transformers import BitsAndBytesConfig

    if quantization is None:
        return None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )


def load_blip(
    name: str,
    *,
    quantization: Quantization | None = None,
    dtype: Any = "auto",
    device: Any = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    model_class: type[StockModel] = BlipForCaptioning,
    **hub: Any,
) -> Any:
    """A full BLIP from a directory or a Hub id, on `device`; of `model_class`, a captioner by default.

    `hub` goes to `from_pretrained`: `revision`, `token`, `local_files_only`. Weights are read from safetensors; from
    pickle files only with `allow_pickle`, and then nothing but tensors is unpickled (`torch.load(weights_only=True)`).

    Raises:
        RecipeError: The weights are not there, are damaged, or are pickles and `allow_pickle` was not said.
    """
    weights = find_weights(name, "model", allow_pickle=allow_pickle, **hub)
    in_safetensors = ".safetensors" in weights.suffixes
    if not in_safetensors:
        # transformers would ask a service to convert the repository and to open a pull request there.
        os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    load = hub | {"dtype": dtype, "trust_remote_code": trust_remote_code, "use_safetensors": in_safetensors}
    if quantization is not None:
        place = {"": device or PartialState().device}
        load |= {"quantization_config": quantization_config(quantization), "device_map": place}
    with reading_weights(name):
        model = model_class.from_pretrained(name, **load)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # With AVX512-BF16 bitsandbytes would pack the weights of 4-bit layers at the first evaluation of a model,
            # round what goes in to bfloat16, and have no gradient from then on.
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if device is not None and quantization is None:
        model.to(device)
    return model


def check_is_blip(name: str, model_class: type[StockModel] = BlipForCaptioning, **hub: Any) -> PreTrainedConfig:
    """The configuration of `name`, which must be a BLIP of the kind of `model_class`; reads one small file.

    Raises:
        RecipeError: There is no such model, it cannot be read, or it is of another kind.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, **hub)
    except (OSError, ValueError) as error:
        own_code = "trust_remote_code" in str(error)
        advice = " Read that code first; trust_remote_code (--trust_remote_code) lets it run." if own_code else ""
        raise RecipeError(
            f"model_name_or_path is {name!r}, which cannot be loaded: {first_line(error)}{advice}"
        ) from error
    what, example = KINDS[model_class.stock_class.__name__]
    if not isinstance(config, BlipConfig):
        raise RecipeError(
            f"model_name_or_path is {name!r}, a model of type {config.model_type!r}: expected a BLIP {what} "
            f"(model type 'blip'), such as {example}."
        )
    expected = model_class.stock_class.__name__
    architecture = (config.architectures or [expected])[0]
    if architecture != expected:
        raise RecipeError(
            f"model_name_or_path is {name!r}, a {architecture}: expected a {what} ({expected}), such as {example}."
        )
    return config


def add_lora(model: StockModel, arguments: ModelArguments) -> PeftModel:
    """Wrap `model` with a fresh LoRA adapter; everything else is frozen.

    Raises:
        RecipeError: `lora_target_modules` matches nothing, or would adapt the LM head, whose weights are tied.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if arguments.load_in_8bit or arguments.load_in_4bit:
        # Its own gradient checkpointing breaks BLIP (an in-place addition on a leaf); Trainer switches it on later.
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if arguments.lora_target_modules and "all-linear" in arguments.lora_target_modules:
        raise RecipeError(
            "lora_target_modules is 'all-linear', which would adapt the LM head, whose weights are tied to the word "
            "embeddings. Name the layers instead: query key value dense (text), qkv projection fc1 fc2 (vision)."
        )
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules or model.lora_layers,
        exclude_modules=r".*\.cls\..*",
        use_dora=arguments.use_dora,
        use_rslora=arguments.use_rslora,
        # peft's task types expect arguments that BLIP's forward does not have.
        task_type=None,
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        names = "query key value dense (text), qkv projection fc1 fc2 (vision)"
        raise RecipeError(
            f"lora_target_modules is {arguments.lora_target_modules}: {first_line(error)} The layers are {names}."
        ) from error
    config.revision = getattr(model.config, "_commit_hash", None)
    return peft_model


def build_model(
    arguments: ModelArguments, generation: GenerationArguments, words: Iterable[str], task: Task | None = None
) -> tuple[Any, BlipProcessor]:
    """The model of a recipe, ready to train, and its processor.

    Args:
        arguments, generation: The recipe's keys.
        words: What the embedded model learns its words from.
        task: What it will learn; by default to write captions.

    Raises:
        RecipeError: There is no such model, or it is not a BLIP of the task's kind.
    """
    task = task or find_task("captioning")
    if arguments.model_name_or_path == TINY_MODEL:
        model, processor = task.build_tiny(words, arguments.image_size)
    else:
        model, processor = _load_base(arguments, task.model_class)
    if arguments.attention_implementation == "sdpa":
        model.use_sdpa()
    if arguments.freeze_vision:
        model.vision_model.requires_grad_(False)
    if model.can_generate():
        # Saved beside the model, so that pipelines caption as the scores were made.
        model.generation_config.update(**generation.generate_kwargs(), _from_model_config=False)
    return (add_lora(model, arguments) if arguments.use_peft else model), processor


def _load_base(arguments: ModelArguments, model_class: type[StockModel]) -> tuple[Any, BlipProcessor]:
    name = arguments.model_name_or_path
    hub: dict[str, Any] = {"revision": arguments.model_revision}
    if read_repository_json(name, "adapter_config.json", **hub):
        raise RecipeError(
            f"model_name_or_path is {name!r}, an adapter: fold it into its base first with "
            f"`python -m blip_recipe.merge {name} OUT`, and train OUT."
        )
    check_is_blip(name, model_class, trust_remote_code=arguments.trust_remote_code, **hub)
    # Trained weights are kept in 32 bits, whatever they were saved in; bf16 is Trainer's autocast.
    model = load_blip(
        name,
        quantization=arguments.quantization,
        dtype=torch.float32,
        trust_remote_code=arguments.trust_remote_code,
        model_class=model_class,
        **hub,
    )
    processor = load_processor(name, **hub)
    if arguments.image_size is not None:
        resize_position_embeddings(model, arguments.image_size)
        processor.image_processor.size = SizeDict(height=arguments.image_size, width=arguments.image_size)
    return model, processor


def merged_model(
    adapter: str, model_class: type[StockModel] = BlipForCaptioning, **hub: Any
) -> tuple[Any, BlipProcessor]:
    """The adapter folded into its base in full precision, never into quantised weights.

    Raises:
        RecipeError: `adapter` is not an adapter of a BLIP of that kind.
    """
    if not read_repository_json(adapter, "adapter_config.json", **hub):
        raise RecipeError(f"{adapter!r} holds no adapter_config.json: expected the output directory of a LoRA run.")
    model, processor, settings = load_captioner(
        adapter, quantization=None, dtype=torch.float32, model_class=model_class, **hub
    )
    merged = model.merge_and_unload()
    if merged.can_generate():
        merged.generation_config.update(**settings.generate_kwargs(), _from_model_config=False)
    return merged, processor


def name_stock_class(adapter_dir: Path, stock: type = BlipForConditionalGeneration) -> None:
    """Let a saved adapter name the stock BLIP class, which everybody has, as the class of its base model."""
    path = adapter_dir / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_mapping"] = {"base_model_class": stock.__name__, "parent_library": stock.__module__}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_repository_json(name: str, filename: str, **hub: Any) -> dict[str, Any]:
    """A JSON file of a model directory or Hub repository; empty where there is none.

    Raises:
        RecipeError: There is no such directory or repository.
    """
    try:
        path = cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        raise RecipeError(f"The model {name!r} cannot be found: {first_line(error)}") from error
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def recorded_quantization(recipe: dict[str, Any]) -> Quantization | None:
    """The precision of the base model that an adapter's recipe was trained on."""
    if recipe.get("load_in_4bit"):
        return "4bit"
    return "8bit" if recipe.get("load_in_8bit") else None


def load_captioner(
    model_name_or_path: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: Any = None,
    dtype: Any = "auto",
    quantization: Literal["recorded", "8bit", "4bit"] | None = "recorded",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    model_class: type[StockModel] = BlipForCaptioning,
) -> tuple[Any, BlipProcessor, CaptionSettings]:
    """A saved captioner, full or adapter, ready to caption, with its processor and the settings it was scored with.

    With another `model_class`, another kind of BLIP.

    An adapter trained on an 8- or 4-bit base is put on the same base (`quantization="recorded"`), because that is the
    model whose captions were scored; `None` asks for the base in full precision. Weights in pickle files are read
    only with `allow_pickle`, and code that comes with a model is run only with `trust_remote_code`.

    Raises:
        RecipeError: It cannot be loaded, or is not a BLIP captioner.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": local_files_only}
    recipe = read_repository_json(model_name_or_path, "recipe.json", **hub)
    adapter = read_repository_json(model_name_or_path, "adapter_config.json", **hub)
    usual = CaptionSettings(**model_class.decoding)
    settings = CaptionSettings(
        prompt=recipe.get("prompt", usual.prompt),
        num_beams=recipe.get("generation_num_beams", usual.num_beams),
        max_length=recipe.get("generation_max_length", usual.max_length),
        min_length=recipe.get("generation_min_length", usual.min_length),
    )
    if quantization == "recorded":
        quantization = recorded_quantization(recipe) if adapter else None
    load: dict[str, Any] = {
        "quantization": quantization,
        "dtype": dtype,
        "device": device,
        "allow_pickle": allow_pickle,
        "trust_remote_code": trust_remote_code,
        "model_class": model_class,
    }
    if adapter:
        base_hub = hub | {"revision": adapter.get("revision")}
        check_is_blip(adapter["base_model_name_or_path"], model_class, trust_remote_code=trust_remote_code, **base_hub)
        processor = load_processor(model_name_or_path, **hub)
        base = load_blip(adapter["base_model_name_or_path"], **load, **base_hub)
        if processor.image_processor.size["height"] != base.config.vision_config.image_size:
            resize_position_embeddings(base, processor.image_processor.size["height"])
        model: Any = _with_adapter(base, model_name_or_path, device, allow_pickle, **hub)
    else:
        check_is_blip(model_name_or_path, model_class, trust_remote_code=trust_remote_code, **hub)
        processor = load_processor(model_name_or_path, **hub)
        model = load_blip(model_name_or_path, **load, **hub)
    model.use_sdpa()
    return model.eval(), processor, settings


def _with_adapter(base: StockModel, adapter: str, device: Any, allow_pickle: bool, **hub: Any) -> PeftModel:
    from peft import PeftModel

    weights = find_weights(adapter, "adapter_model", allow_pickle=allow_pickle, **hub)
    with reading_weights(adapter):
        # By their directory: for a name, peft would ask the network even with `local_files_only`.
        model = PeftModel.from_pretrained(base, str(weights.parent))
    return model if device is None else model.to(device)
