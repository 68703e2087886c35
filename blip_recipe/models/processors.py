"""Image processor and tokenizer: loaded from a model or an adapter, saved so that transformers 4.57 and 5 read them.

What the image processor does is done in two places: pictures are resized as bytes by the processes that read them
(`resize_pixels`), and become normalised floats on the device (`normalize_pixels`), so that a quarter of the memory goes
through processes and to the GPU. Both are the stock processor's own steps: together they give its `pixel_values`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import BlipProcessor
from transformers.utils import cached_file

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from transformers import BlipImageProcessor
    from transformers.image_utils import SizeDict

TOKENIZER_CONFIG = "tokenizer_config.json"


def load_processor(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> BlipProcessor:
    """The processor of a model directory, an adapter directory or a Hub id; code in the repository is never run.

    An adapter that was saved without processor files has the processor of its base model.

    Raises:
        RecipeError: There is no processor, or its files cannot be read.
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
            f"{name!r} has no image processor and tokenizer that can be read: {error} Expected the files which "
            "`processor.save_pretrained` writes (preprocessor_config.json, tokenizer.json, tokenizer_config.json)."
        ) from error
    # BERT's own list has token_type_ids, which BLIP's generate refuses.
    processor.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return processor


def save_processor(processor: BlipProcessor, directory: str | PathLike[str]) -> None:
    """Write the files of `processor` into `directory` in the form that both transformers 4.57 and 5 read.

    transformers 5 keeps the image processor inside `processor_config.json` and additional special tokens in a list
    `extra_special_tokens`; 4.57 looks for `preprocessor_config.json` and fails on that list.
    """
    directory = Path(directory)
    processor.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
    path = directory / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for how_it_was_loaded in ("is_local", "local_files_only"):
        config.pop(how_it_was_loaded, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def resize_pixels(pixels: torch.Tensor, image_processor: BlipImageProcessor) -> torch.Tensor:
    """`pixels` `(3, height, width)` of bytes in the size of the image processor, still bytes.

    Bicubic with antialiasing, equal to the last bit to what the stock image processor makes of the picture before it
    normalises. (Pillow's own filter, in the stock variant for Pillow, rounds between columns and rows, and differs from
    both: by 0.024 of 255 levels on average over 86 photographs at 384 pixels, by 10 at most.)
    """
    return image_processor.resize(pixels, cast("SizeDict", image_processor.size), image_processor.resample)


def stack_pixels(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """`(images, 3, height, width)` of pictures of one size, colours side by side in memory.

    So they are decoded and resized; the device puts colours behind one another faster (`normalize_pixels`).
    """
    return torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)


def normalize_pixels(pixels: torch.Tensor, image_processor: BlipImageProcessor) -> torch.Tensor:
    """Bytes `(images, 3, height, width)` as the float32 `pixel_values` of the stock image processor.

    Floats are taken for normalised already.
    """
    if pixels.is_floating_point():
        return pixels
    return image_processor.rescale_and_normalize(
        pixels.contiguous(),
        image_processor.do_rescale,
        image_processor.rescale_factor,
        image_processor.do_normalize,
        image_processor.image_mean,
        image_processor.image_std,
    )


def _find(name: str, filename: str, hub: dict[str, Any]) -> str | None:
    return cached_file(
        name, filename, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False, **hub
    )
