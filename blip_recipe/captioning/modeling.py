"""A BLIP captioner that encodes each image once for all its captions, with the weights of the stock class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import BlipForConditionalGeneration

from blip_recipe.models.adapters import is_adapted
from blip_recipe.models.captioner import CaptioningModel
from blip_recipe.models.loading import load_finished
from blip_recipe.models.text import IGNORED

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BlipProcessor, PreTrainedTokenizerBase

    from blip_recipe.models.decoding import DecodingSettings


class BlipForCaptioning(CaptioningModel, BlipForConditionalGeneration):  # type: ignore[misc]
    """`BlipForConditionalGeneration` for several captions per image, packed end to end in one row.

    The image encoder and the keys and values of cross-attention are computed once per image, not once per caption. The
    positions of each caption start at 0, and a caption attends only to itself.
    """

    stock_class = BlipForConditionalGeneration
    lora_layers = r"text_decoder\.bert\.encoder\..*\.(query|key|value|dense)"


@torch.no_grad()
def mean_log_probs(
    model: Any, tokenizer: PreTrainedTokenizerBase, image_embeds: torch.Tensor, prompt: str, token_ids: torch.Tensor
) -> torch.Tensor:
    """The mean log-probabilities per token of captions, `(images, captions)` in float32.

    They are the model's own: penalties, temperature and length limits of the generation do not count. The `[SEP]` at
    the end of a caption counts as a token, the prompt does not.

    Args:
        model: `BlipForCaptioning` in evaluation mode, or a `PeftModel` of one.
        tokenizer: Its tokenizer.
        image_embeds: `(images, patches, width)`.
        prompt: The text that the captions start with.
        token_ids: The captions `(images, captions, tokens)` after the prompt, as generated.
    """
    model = model.get_base_model() if is_adapted(model) else model
    captions = token_ids.flatten(0, 1)
    prompt_ids = tokenizer(prompt, return_tensors="pt").input_ids[:, :-1].to(captions)
    prompt_ids[:, 0] = model.config.text_config.bos_token_id
    input_ids = torch.cat([prompt_ids.expand(len(captions), -1), captions], dim=1)
    is_end = captions == model.config.text_config.sep_token_id
    is_padding = is_end.cumsum(1) > is_end.long()
    labels = input_ids.clone()
    labels[:, : prompt_ids.shape[1]] = IGNORED
    labels[:, prompt_ids.shape[1] :][is_padding] = IGNORED
    if not model.uses_sdpa:
        # In eager attention the captions of an image cannot share its keys and values.
        image_embeds = image_embeds.repeat_interleave(token_ids.shape[1], 0)
    losses = model(input_ids=input_ids, labels=labels, image_embeds=image_embeds).token_losses
    return -(losses.sum(1) / (~is_padding).sum(1)).view(token_ids.shape[:2])


def load_captioner(
    model_name_or_path: str, **arguments: Any
) -> tuple[BlipForCaptioning | PeftModel, BlipProcessor, DecodingSettings]:
    """Load a trained captioner, full or adapter, for inference.

    Args:
        model_name_or_path (`str`): Directory or Hub id of a captioner trained here, or of any BLIP captioner.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*): Hub token; by default that of the environment.
        device (`str` or `torch.device`, *optional*): The device; by default the CPU.
        dtype (`torch.dtype` or `str`, defaults to `"auto"`): Precision of the weights; `"auto"`: that of the files.
        quantization (`str`, *optional*, defaults to `"recorded"`): `"8bit"`, `"4bit"` or `None`; `"recorded"` loads
            the base of an adapter in the precision it was trained on.
        allow_pickle (`bool`, defaults to `False`): Whether to also read weights in pickle files (tensors only).
        trust_remote_code (`bool`, defaults to `False`): Whether to run code that comes with the configuration.
        local_files_only (`bool`, defaults to `False`): Whether to use local files only.

    Returns:
        The model in evaluation mode, its processor, and the prompt and decoding that it was scored with.

    Raises:
        RecipeError: The model cannot be loaded, or is not a BLIP captioner.

    Example:
        ```python
        from blip_recipe import load_captioner

        model, processor, settings = load_captioner("outputs/my_captioner")
        ```
    """
    return load_finished(model_name_or_path, BlipForCaptioning, **arguments)
