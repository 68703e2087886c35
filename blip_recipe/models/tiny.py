"""Build the parts of tiny models: configuration, tokenizer with a vocabulary from the data, and processor."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import BertTokenizer, BlipConfig, BlipImageProcessor, BlipProcessor

from blip_recipe.models.vocabulary import MAX_WORDS, count_words, spelling_pieces

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.models.blip.modeling_blip_text import BlipTextModel

WIDTH = 128
LAYERS = 2
HEADS = 4
IMAGE_SIZE = 96
PATCH_SIZE = 48
POSITIONS = 512
"""As in BLIP: transformers 4.57 treats a `max_length` of 20 as unset and may generate up to 256 new tokens."""
TRAINED_POSITIONS = 64
"""Number of positions with random weights, more than any caption of a recipe needs; the others are zeros."""

WEIGHT_STD = 0.06
"""Standard deviation of new linear layers. BLIP's 0.01 and 0.02 are too small for a narrow model: the outputs of its
layers would be negligible next to the residual stream, and ITM would stay at chance for a thousand steps."""


def enlarge_weights(model: PreTrainedModel, *, without: Collection[nn.Module]) -> None:
    """Draw new weights of linear layers, except those of `without`, and of positions, for ITC and ITM to learn fast."""
    # As in `build_tiny_captioner`: large position embeddings let the model use positions from the first step.
    nn.init.normal_(cast("Any", model).vision_model.embeddings.position_embedding, std=1.0)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module not in without:
            nn.init.normal_(module.weight, std=WEIGHT_STD)


def add_positions(model: PreTrainedModel, *texts: BlipTextModel) -> None:
    """Extend the position embeddings of the text models `texts` of `model` to BLIP's number with zeros."""
    for text in texts:
        embeddings = text.embeddings
        drawn = embeddings.position_embeddings.weight.detach()
        zeros = drawn.new_zeros(POSITIONS - len(drawn), drawn.shape[1])
        embeddings.position_embeddings = nn.Embedding.from_pretrained(torch.cat([drawn, zeros]), freeze=False)
        embeddings.register_buffer("position_ids", torch.arange(POSITIONS)[None], persistent=False)
    cast("Any", model.config).text_config.max_position_embeddings = POSITIONS


def build_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerBase:
    """Build a BERT tokenizer with `[DEC]` and `[ENC]`, as BLIP's, and the words of `captions` as vocabulary.

    Single characters are pieces too, so that unknown words are spelt. In scripts without spaces between words, each
    character is a word.
    """
    words = count_words(caption.lower() for caption in captions)
    foreign = [word for word in words if not word.isascii()]
    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [*(word for word, _ in words.most_common(MAX_WORDS)), *spelling_pieces(foreign)]
    # By default, BERT's tokenizer strips accents, and cuts Chinese into words of one character.
    settings: dict[str, Any] = {"strip_accents": False, "tokenize_chinese_chars": False} if foreign else {}
    return BertTokenizer(
        vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))},
        bos_token="[DEC]",
        additional_special_tokens=["[ENC]"],
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )


def tiny_config(tokenizer: PreTrainedTokenizerBase, image_size: int) -> BlipConfig:
    """Build BLIP's configuration at a size that trains on a laptop.

    The defaults of `BlipConfig` are not BLIP's. `[SEP]` as the end token, `[DEC]` as the start token, a LayerNorm eps
    of 1e-6 in the image encoder and the scale of initial weights follow the original repository
    (`configs/med_config.json`, `models/vit.py`). Dropout is 0 instead of 0.1: the tiny model does not overfit.
    """
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    return BlipConfig(
        text_config={
            **shape,
            "encoder_hidden_size": WIDTH,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TRAINED_POSITIONS,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **shape,
            "image_size": image_size,
            "patch_size": PATCH_SIZE,
            "layer_norm_eps": 1e-6,
            "initializer_range": 0.01,
        },
        image_text_hidden_size=WIDTH,
    )


def tiny_processor(tokenizer: PreTrainedTokenizerBase, image_size: int) -> BlipProcessor:
    """Build the processor of a tiny model for pictures of `image_size` x `image_size` pixels."""
    return BlipProcessor(BlipImageProcessor(size={"height": image_size, "width": image_size}), tokenizer)
