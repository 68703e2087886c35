"""Convert weights in the form of BLIP's original code or of LAVIS to a model of transformers.

Both write a dictionary whose `model` holds the tensors, with the same names: `visual_encoder` is timm's vision
transformer, and `text_encoder` and `text_decoder` are BERTs with cross-attention (`models/vit.py` and `models/med.py`
of the original repository). Only tensors are read, never code.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from blip_recipe.errors import RecipeError
from blip_recipe.models.image_text import TEMPERATURE_RANGE
from blip_recipe.models.weights import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PreTrainedTokenizerBase

Weights = dict[str, torch.Tensor]


class Form(NamedTuple):
    """The stock class of a task, and the parts of its weights beside `visual_encoder`."""

    stock_class: Any
    parts: tuple[str, ...]


FORMS = {
    "captioning": Form(BlipForConditionalGeneration, ("text_decoder",)),
    "vqa": Form(BlipForQuestionAnswering, ("text_encoder", "text_decoder")),
    "retrieval": Form(BlipForImageTextRetrieval, ("text_encoder", "vision_proj", "text_proj", "itm_head")),
}

PARTS = {"visual_encoder"}.union(*(form.parts for form in FORMS.values()))

NOT_KEPT = re.compile(
    r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\..*|(image|text|idx|ptr)_queue|queue_ptr|temp|.*\.position_ids"
)
"""Momentum encoders, queues and temperature, which only training uses, and positions, which are counted.

The temperature becomes `logit_scale_init_value` of the configuration.
"""

RENAMED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "blocks": "encoder.layers",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn": "self_attn",
}
"""Parts of the names in `visual_encoder`, beside two linear layers `proj`."""

HEAD_WIDTH = 64
"""The width of a head in every published BLIP; tensors do not tell it."""


SHOWN = 3
"""How many names a message shows."""


def read_weights(path: Path) -> Weights:
    """Read the tensors of a file that the original code or LAVIS has saved.

    Raises:
        RecipeError: The file cannot be read, holds more than tensors and plain values, or holds no tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # torch's message advises to unpickle everything, which would run the code.
        code = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
        reason = f"it has code ({code[1]}), which is never run" if code else "it is not a file of torch.save"
        raise RecipeError(
            f"{path} cannot be read: {reason}. Expected tensors and plain values, as in "
            "torch.save({'model': model.state_dict()}, FILE)."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise RecipeError(f"{path} cannot be read as a file of torch.save: {first_line(error)}") from error
    weights = content
    for key in ("model", "state_dict"):
        weights = weights[key] if isinstance(weights, dict) and isinstance(weights.get(key), dict) else weights
    values = list(weights.values()) if isinstance(weights, dict) else []
    if not values or not all(isinstance(each, torch.Tensor) for each in values):
        raise RecipeError(f"{path} has no dictionary of tensors: expected one in its key 'model'.")
    # DistributedDataParallel puts a prefix before every name.
    return {str(name).removeprefix("module."): values for name, values in weights.items()}


def find_task(weights: Weights, asked: str | None = None) -> str:
    """The task whose parts the weights have: `asked`, or the only one.

    Raises:
        RecipeError: Parts of the task are missing, or the weights are those of several tasks.
    """
    found = {name.split(".")[0] for name in weights}
    if "visual_encoder" not in found:
        raise RecipeError(
            f"There is no visual_encoder among the {len(weights)} tensors ({examples(weights)}): expected weights of "
            "BLIP's original code or of LAVIS."
        )
    fitting = [task for task, form in FORMS.items() if found.issuperset(form.parts)]
    if asked is not None:
        if asked not in fitting:
            lacking = ", ".join(part for part in FORMS[asked].parts if part not in found)
            raise RecipeError(f"The weights have no {lacking}, which a model for {asked} needs.")
        return asked
    # A question answerer has the parts of a captioner too: the task is the one that leaves none over.
    whole = [task for task in fitting if found & PARTS == {"visual_encoder", *FORMS[task].parts}]
    parts = ", ".join(sorted(found & PARTS))
    if not fitting:
        raise RecipeError(
            f"The weights have {parts}, which is no task's model: expected a text_decoder, or a text_encoder with "
            "vision_proj, text_proj and itm_head."
        )
    if len(whole) != 1:
        raise RecipeError(
            f"The weights have {parts}, as after pretraining, which are those of several tasks. Name one with --task: "
            f"{' or '.join(fitting)}."
        )
    return whole[0]


def build_config(
    weights: Weights,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> BlipConfig:
    """The configuration of a model with these shapes.

    What tensors do not tell is as in the original: dropout of 0.1 in the text, an eps of 1e-6 in the image encoder.

    Args:
        weights: The tensors, by their original names.
        task: The task of the model.
        tokenizer: Its tokenizer, with `[DEC]`.
        vision_heads: Attention heads of the image encoder; by default as wide as BLIP's.
        text_heads: Attention heads of the text networks; by default as wide as BLIP's.

    Raises:
        RecipeError: A tensor is missing, or shapes do not fit together.
    """
    text = "text_decoder.bert" if task == "captioning" else "text_encoder"
    vocabulary, width = shape_of(weights, f"{text}.embeddings.word_embeddings.weight", 2)
    if len(tokenizer) != vocabulary:
        raise RecipeError(
            f"The tokenizer has {len(tokenizer):,} words with [DEC] and [ENC], but the weights have {vocabulary:,}: "
            "expected the vocabulary that the model was trained with (--tokenizer)."
        )
    vision_width, _, patch_size, _ = shape_of(weights, "visual_encoder.patch_embed.proj.weight", 4)
    positions = shape_of(weights, "visual_encoder.pos_embed", 3)[1]
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise RecipeError(
            f"visual_encoder.pos_embed has {positions} positions: expected a square of patches, and one more."
        )
    # A captioner of pretrained weights may become one with a matcher again.
    contrastive = task == "retrieval" or "vision_proj.weight" in weights
    return BlipConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": width,
            "encoder_hidden_size": vision_width,
            "intermediate_size": shape_of(weights, f"{text}.encoder.layer.0.intermediate.dense.weight", 2)[0],
            "num_hidden_layers": count_layers(weights, f"{text}.encoder.layer"),
            "num_attention_heads": count_heads(width, text_heads, "--text_heads"),
            "max_position_embeddings": shape_of(weights, f"{text}.embeddings.position_embeddings.weight", 2)[0],
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": shape_of(weights, "visual_encoder.blocks.0.mlp.fc1.weight", 2)[0],
            "num_hidden_layers": count_layers(weights, "visual_encoder.blocks"),
            "num_attention_heads": count_heads(vision_width, vision_heads, "--vision_heads"),
            "image_size": side * patch_size,
            "patch_size": patch_size,
            "layer_norm_eps": 1e-6,
            "initializer_range": 0.02,
        },
        image_text_hidden_size=shape_of(weights, "vision_proj.weight", 2)[0] if contrastive else 256,
        **learnt_temperature(weights),
    )


def learnt_temperature(weights: Weights) -> dict[str, Any]:
    """The temperature of ITC as the configuration has it, so that training starts from it, as in the original.

    Raises:
        RecipeError: It is not one number.
    """
    if "temp" not in weights:
        return {}
    shape_of(weights, "temp", 0)
    least, most = TEMPERATURE_RANGE
    return {"logit_scale_init_value": -math.log(min(max(weights["temp"].item(), least), most))}


def shape_of(weights: Weights, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        RecipeError: There is no such tensor, or it has another number of dimensions.
    """
    if name not in weights:
        raise RecipeError(f"The weights have no {name}, which tells the model's size. They have {examples(weights)}.")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise RecipeError(f"{name} has the shape {shape}: expected {dimensions} dimensions.")
    return shape


def count_layers(weights: Iterable[str], prefix: str) -> int:
    """The number of layers whose names begin with `prefix` and a number."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max(int(found[1]) for name in weights if (found := pattern.match(name)))


def count_heads(width: int, given: int | None, option: str) -> int:
    """The number of attention heads.

    Raises:
        RecipeError: Heads do not divide the width.
    """
    heads = width // HEAD_WIDTH if given is None and width % HEAD_WIDTH == 0 else given
    if not heads or width % heads:
        raise RecipeError(
            f"A width of {width} is no multiple of {heads or f'{HEAD_WIDTH}, the width of a head of BLIP'}: give the "
            f"number of attention heads with {option}."
        )
    return heads


def build_model(weights: Weights, task: str, config: BlipConfig) -> tuple[Any, list[str]]:
    """The model of transformers with these weights, in float32.

    Returns:
        The model, and the names of the tensors that it does not have: those that only training uses, and the parts of
        other tasks.

    Raises:
        RecipeError: Tensors are missing, unknown or of another shape, or the LM head is not tied to the embeddings.
    """
    form = FORMS[task]
    others = PARTS - {"visual_encoder", *form.parts}
    left_out = [name for name in weights if NOT_KEPT.fullmatch(name) or name.split(".")[0] in others]
    kept = {stock_name(name): weights[name].float() for name in weights.keys() - set(left_out)}
    model = form.stock_class(config).eval()
    own = model.state_dict()
    tied = {name: source for name, source in model.all_tied_weights_keys.items() if name in own}
    check_names(own, kept, tied, form.stock_class.__name__)
    for name, source in tied.items():
        if name in kept and not kept[name].equal(kept[source]):
            raise RecipeError(
                f"{name} and {source} differ, but {form.stock_class.__name__} has one tensor for both: these weights "
                "cannot be converted."
            )
    model.load_state_dict(kept, strict=False)
    return model, left_out


def stock_name(name: str) -> str:
    """The name that transformers gives to a tensor."""
    part, _, rest = name.partition(".")
    if part != "visual_encoder":
        return name
    rest = rest.replace("patch_embed.proj.", "embeddings.patch_embedding.").replace("attn.proj.", "attn.projection.")
    return ".".join(["vision_model", *(RENAMED.get(each, each) for each in rest.split("."))])


def check_names(own: Mapping[str, torch.Tensor], kept: Weights, tied: Iterable[str], stock_class: str) -> None:
    """Check that `kept` has the names and shapes of the model's `own` tensors, except those that are `tied` to others.

    Raises:
        RecipeError: It has not. The message has numbers and examples.
    """
    missing = sorted(own.keys() - kept.keys() - set(tied))
    unknown = sorted(kept.keys() - own.keys())
    other = [
        f"{name} ({shown(kept[name])} for {shown(own[name])})"
        for name in sorted(own.keys() & kept.keys())
        if kept[name].shape != own[name].shape
    ]
    faults = {"are missing": missing, "are unknown": unknown, "have another shape": other}
    if any(faults.values()):
        counted = "; ".join(f"{len(names)} {fault} ({examples(names)})" for fault, names in faults.items() if names)
        raise RecipeError(
            f"The weights are not those of a {stock_class}. Of {len(own)} tensors that it has and {len(kept)} that "
            f"were read, {counted}."
        )


def examples(names: Iterable[str]) -> str:
    """The first names, and dots if there are more."""
    listed = list(names)
    return ", ".join([*listed[:SHOWN], *(["…"] if len(listed) > SHOWN else [])])


def shown(tensor: torch.Tensor) -> str:
    """The shape of a tensor in a message."""
    return "x".join(map(str, tensor.shape))


def read_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """BLIP's tokenizer with the words of `place`: a file with a word a line, a directory of a tokenizer, or a Hub id.

    Raises:
        RecipeError: There is none.
    """
    path = Path(place).expanduser()
    try:
        if path.is_file():
            words = path.read_text(encoding="utf-8").splitlines()
            tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        else:
            tokenizer = BertTokenizer.from_pretrained(place)
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(
            f"The tokenizer {place!r} cannot be read: {first_line(error)} Give a directory, a Hub id, or a vocab.txt "
            "with a word a line (--tokenizer)."
        ) from error
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer
