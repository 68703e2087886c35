"""Find the words that a tokenizer lacks, add them, or use another tokenizer, with the word embeddings to match.

BLIP's tokenizer is BERT's: a WordPiece vocabulary of English. It strips accents and vowel signs, and gives `[UNK]` for
most characters of other scripts. What is changed here is saved in stock form: a larger vocabulary, two settings of
`BertTokenizer` (`strip_accents`, `tokenize_chinese_chars`), and a larger `vocab_size` of the model.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import nn
from transformers import AutoTokenizer

from blip_recipe.errors import RecipeError
from blip_recipe.metrics.characters import cut_unspaced, has_unspaced
from blip_recipe.models.weights import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from transformers import BlipProcessor, PreTrainedTokenizerBase

MAX_WORDS = 10_000
"""Maximum number of whole words that are added to a vocabulary, the most common ones; others are spelt."""

START, QUESTION_START = "[DEC]", "[ENC]"
"""BLIP's own tokens, whose ids are `bos_token_id` and the next one; published checkpoints' tokenizers lack them."""

Row = int | list[int]
"""The origin of a token's row: the same token's old id, or the old ids of the pieces of a new token."""


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count the words of `texts`: punctuation is cut off, and characters of scripts without spaces are words."""
    return cut_words(Counter(chain.from_iterable(map(str.split, texts))))


def cut_words(counts: Mapping[str, int]) -> Counter[str]:
    """Cut counted texts, or what stands between spaces in them, into words, and count these."""
    words: Counter[str] = Counter()
    for word, count in counts.items():
        for piece in [word] if word.isascii() and word.isalnum() else _cut(word):
            words[piece] += count
    return words


def _cut(word: str) -> list[str]:
    return [piece for piece, _ in BertPreTokenizer().pre_tokenize_str(cut_unspaced(word))]


def find_changed_words(words: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Find the words that a tokenizer does not give back, with what it makes of them; case does not count."""
    vocabulary = tokenizer.get_vocab()
    doubtful = [word for word in words if not (word.isascii() and word in vocabulary)]
    if not doubtful:
        return {}
    ids = tokenizer(doubtful, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids
    found = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
    return {word: text for word, text in zip(doubtful, found, strict=True) if _fold(word) != _fold(text)}


def _fold(text: str) -> str:
    """A text without spaces and case, with composed characters."""
    return unicodedata.normalize("NFC", text.lower()).replace(" ", "")


def missing_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that a tokenizer needs to give back every word of `texts`.

    These are the words that it changes, and the characters of these words, to spell others with. Of scripts without
    spaces between words, only the characters are added.
    """
    check_is_bert(tokenizer, "The model's tokenizer")
    lowercase = cast("Any", tokenizer).backend_tokenizer.normalizer.lowercase
    words = count_words(text.lower() if lowercase else text for text in texts)
    changed = find_changed_words(words, tokenizer)
    whole = [word for word, _ in words.most_common() if word in changed and not has_unspaced(word)][:MAX_WORDS]
    # Added tokens end the cutting of Chinese into words of one character: known ones need their `##` pieces then.
    spelt = [word for word in words if word in changed or not word.isascii()] if changed else []
    return list(dict.fromkeys([*spelling_pieces(spelt), *whole]))


def spelling_pieces(words: Iterable[str]) -> list[str]:
    """The pieces that spell `words`: each character as the beginning of a word, and as its continuation (`##`)."""
    characters = sorted(set(chain.from_iterable(words)))
    inner = [f"##{each}" for each in characters if not unicodedata.category(each).startswith(("P", "S"))]
    return [*characters, *inner]


def add_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[str]:
    """Add `tokens` to a vocabulary, and rows for them to the model's word embeddings and LM head.

    The tokenizer then keeps accents, and no longer cuts Chinese into words of one character, so that captions have no
    spaces between them. A new row is the mean of the pieces that its token was split into before, plus noise of the
    scale of new weights.

    Args:
        model: A BLIP of any kind, not quantised and without an adapter.
        tokenizer: Its tokenizer, changed in place.
        tokens: The tokens. `##` before one means that it continues a word. Those of scripts without spaces between
            words are added as continuations too.

    Returns:
        The tokens that were new.

    Raises:
        RecipeError: The tokenizer is not BERT's.
    """
    check_is_bert(tokenizer, "The model's tokenizer")
    add_start_tokens(tokenizer, model.config.text_config.bos_token_id)
    known = tokenizer.get_vocab()
    inner = (f"##{token}" for token in tokens if has_unspaced(token) and not token.startswith("##"))
    new = [token for token in dict.fromkeys([*tokens, *inner]) if token not in known]
    if not new:
        return []
    rows: list[Row] = [*range(len(tokenizer)), *split_into_pieces(new, tokenizer)]
    vocabulary = known | {token: len(tokenizer) + number for number, token in enumerate(new)}
    keep_all_characters(tokenizer, vocabulary)
    resize_vocabulary(model, rows, tokenizer)
    return new


def use_tokenizer(model: Any, processor: BlipProcessor, name: str, **hub: Any) -> None:
    """Replace the tokenizer of a processor by another one of BERT's kind, and fit the model's vocabulary to it.

    Tokens of both tokenizers keep their rows. Each other token begins as the mean of the pieces that the old tokenizer
    splits it into, plus noise.

    Args:
        model: A BLIP of any kind, not quantised and without an adapter.
        processor: Its processor, changed in place.
        name: Directory or Hub id of the tokenizer.
        hub: Arguments of `from_pretrained`, such as `revision`.

    Raises:
        RecipeError: There is no such tokenizer, or it is not BERT's.
    """
    old, config = processor.tokenizer, model.config.text_config
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(f"tokenizer_name is {name!r}, which cannot be loaded: {first_line(error)}") from error
    check_is_bert(tokenizer, f"tokenizer_name is {name!r}, which")
    known = {START: config.bos_token_id, QUESTION_START: config.bos_token_id + 1} | old.get_vocab()
    add_start_tokens(tokenizer, None)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    pieces = iter(split_into_pieces([token for token in tokens if token not in known], old))
    rows: list[Row] = [known[token] if token in known else next(pieces) for token in tokens]
    processor.tokenizer = tokenizer
    resize_vocabulary(model, rows, tokenizer)


def is_bert(tokenizer: Any) -> bool:
    """Whether a tokenizer has a WordPiece vocabulary and cuts words as BERT's does: at spaces and punctuation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [(name, getattr(backend, name, None)) for name in ("model", "normalizer", "pre_tokenizer")]
    kinds = {"model": WordPiece, "normalizer": BertNormalizer, "pre_tokenizer": BertPreTokenizer}
    return all(isinstance(part, kinds[name]) for name, part in parts)


def check_is_bert(tokenizer: Any, subject: str) -> None:
    """Check that a tokenizer has a WordPiece vocabulary, as BERT's; the message begins with `subject`.

    Raises:
        RecipeError: It has not.
    """
    if not is_bert(tokenizer):
        raise RecipeError(
            f"{subject} is a {type(tokenizer).__name__}, not a WordPiece tokenizer like BERT's: expected one with a "
            "vocab.txt or tokenizer.json of BERT's kind, such as bert-base-multilingual-cased."
        )


def add_start_tokens(tokenizer: PreTrainedTokenizerBase, bos_token_id: int | None) -> None:
    """Add `[DEC]` and `[ENC]` to a tokenizer that lacks them, where the model has their rows.

    Raises:
        RecipeError: `[DEC]` then has another id than `bos_token_id`, because the tokenizer belongs to another model.
    """
    tokenizer.add_special_tokens({"bos_token": START})
    tokenizer.add_special_tokens({"additional_special_tokens": [QUESTION_START]})
    if bos_token_id not in (None, tokenizer.bos_token_id):
        raise RecipeError(
            f"The tokenizer has {START} as token {tokenizer.bos_token_id}, the model's text_config has bos_token_id "
            f"{bos_token_id}: expected the tokenizer that the model was trained with."
        )


def split_into_pieces(tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The known pieces of each token, without `[UNK]`; empty if there are none."""
    if not tokens:
        return []
    ids = tokenizer([token.removeprefix("##") for token in tokens], add_special_tokens=False, verbose=False).input_ids
    return [[each for each in pieces if each != tokenizer.unk_token_id] for pieces in ids]


def keep_all_characters(tokenizer: Any, vocabulary: dict[str, int]) -> None:
    """Give a BERT tokenizer another vocabulary, and let it keep accents and spell Chinese words with `##` pieces."""
    backend = tokenizer.backend_tokenizer
    backend.model = WordPiece(vocabulary, unk_token=tokenizer.unk_token)
    backend.normalizer = BertNormalizer(
        clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=backend.normalizer.lowercase
    )
    for setting in ("tokenize_chinese_chars", "strip_accents"):
        setattr(tokenizer, setting, False)
        tokenizer.init_kwargs[setting] = False


def resize_vocabulary(model: Any, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give word embeddings and LM head one row for each token, from the old `rows`, and the ids of special tokens."""
    config = model.config.text_config
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # The stock models read the ids from their configuration, and copy two of them.
    parts = [part for name in ("text_encoder", "text_decoder") if (part := getattr(model, name, None)) is not None]
    for each in (config, *(part.config for part in parts)):
        for name, value in {**ids, "vocab_size": len(rows)}.items():
            setattr(each, name, value)
    copies = {"decoder_start_token_id": "bos", "decoder_input_ids": "bos", "decoder_pad_token_id": "pad"}
    for name, key in copies.items():
        if hasattr(model, name):
            setattr(model, name, ids[f"{key}_token_id"])
    for each in filter(None, (getattr(part, "generation_config", None) for part in (model, *parts))):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(each, name) is not None:
                setattr(each, name, ids[name])
    for part in parts:
        text = getattr(part, "bert", part)
        old = text.embeddings.word_embeddings.weight.detach()
        weight = _take_rows(old, rows, config.initializer_range)
        text.embeddings.word_embeddings = nn.Embedding.from_pretrained(
            weight, freeze=False, padding_idx=tokenizer.pad_token_id
        )
        if head := getattr(getattr(part, "cls", None), "predictions", None):
            head.bias = nn.Parameter(_take_rows(head.bias.detach(), rows, 0.0))
            head.decoder = nn.Linear(weight.shape[1], len(rows), device=weight.device, dtype=weight.dtype)
            head.decoder.weight, head.decoder.bias = text.embeddings.word_embeddings.weight, head.bias


def _take_rows(old: torch.Tensor, rows: Sequence[Row], noise: float) -> torch.Tensor:
    """The row of each token: the old one, or the mean of old ones (of all, if there are none) plus noise."""
    mean = old.mean(0)
    new = [old[row] if isinstance(row, int) else old[row].mean(0) if row else mean for row in rows]
    weight = torch.stack(new)
    is_new = torch.tensor([not isinstance(row, int) for row in rows], device=old.device)
    weight[is_new] += noise * torch.randn_like(weight[is_new])
    return weight
