"""Load and save image processor and tokenizer, in a form that transformers 4.57 and 5 read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import BlipImageProcessor, BlipProcessor
from transformers.utils import cached_file

from blip_recipe.data.images import open_image
from blip_recipe.data.pixels import normalize_pixels, read_pixels, resize_pixels
from blip_recipe.errors import RecipeError
from blip_recipe.models.weights import first_line

if TYPE_CHECKING:
    from os import PathLike

    import torch
    from transformers import PreTrainedTokenizerBase

    from blip_recipe.data.images import Picture

TOKENIZER_CONFIG = "tokenizer_config.json"


def load_processor(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> BlipProcessor:
    """Load the processor of a model or adapter; code in its repository is never run.

    For an adapter without processor files, the processor of its base model is loaded.

    Raises:
        RecipeError: There is no such model or processor, or its files cannot be read.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": local_files_only}
    adapter = None if _find(name, TOKENIZER_CONFIG, hub) else _find(name, "adapter_config.json", hub)
    if adapter:
        base = json.loads(Path(adapter).read_text(encoding="utf-8"))
        return load_processor(base["base_model_name_or_path"], **hub | {"revision": base.get("revision")})
    try:
        processor = BlipProcessor.from_pretrained(name, **hub)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"The processor of {name!r} cannot be read: {error} Expected the files that "
            "`processor.save_pretrained` writes (preprocessor_config.json, tokenizer.json, tokenizer_config.json)."
        ) from error
    _set_up(processor.tokenizer)
    return processor


def save_processor(processor: BlipProcessor, directory: str | PathLike[str]) -> None:
    """Save `processor` to `directory` in a form that transformers 4.57 and 5 read.

    transformers 5 saves the image processor inside `processor_config.json` and additional special tokens as a list
    `extra_special_tokens`. transformers 4.57 needs `preprocessor_config.json` and fails on that list. Both decode with
    the saved `clean_up_tokenization_spaces`, as `decode_texts` does.
    """
    directory = Path(directory)
    _set_up(processor.tokenizer)
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
    path = directory / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for how_it_was_loaded in ("is_local", "local_files_only"):
        config.pop(how_it_was_loaded, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _set_up(tokenizer: PreTrainedTokenizerBase) -> None:
    # BERT's default also has token_type_ids, which BLIP's generate does not accept.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.init_kwargs["clean_up_tokenization_spaces"] = True  # what is saved


def _find(name: str, filename: str, hub: dict[str, Any]) -> str | None:
    try:
        return cached_file(
            name, filename, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False, **hub
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"The model {name!r} cannot be found: {first_line(error)}") from error


def read_pixel_values(
    image: Picture, image_processor: BlipImageProcessor, timeout: float | None = None
) -> torch.Tensor:
    """Read a picture as the float32 `pixel_values` `(1, 3, height, width)` of the stock image processor, but faster.

    Raises:
        BadImageError: The picture cannot be read or is too large (see `open_image`).
    """
    # The variant for Pillow, and processors of other models, have steps of their own.
    if type(image_processor) is not BlipImageProcessor or not image_processor.do_resize:
        return image_processor(open_image(image, timeout=timeout), return_tensors="pt").pixel_values
    pixels = resize_pixels(read_pixels(image, timeout), image_processor)
    return normalize_pixels(pixels.unsqueeze(0), image_processor)
