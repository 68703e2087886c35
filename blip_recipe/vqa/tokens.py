"""Set the first tokens of texts: `[ENC]` for questions, `[DEC]` for answers.

Source: `init_tokenizer` in `models/blip.py` and `BLIP_VQA.forward` in `models/blip_vqa.py` of the original repository.
Published checkpoints have BERT's plain tokenizer, which has neither token and starts texts with `[CLS]`, a first token
that the model was not trained with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers.processors import TemplateProcessing

from blip_recipe.models.vocabulary import QUESTION_START, add_start_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def use_question_token(tokenizer: PreTrainedTokenizerBase, bos_token_id: int) -> None:
    """Make `tokenizer` start texts with `[ENC]` instead of `[CLS]`, also after saving and loading.

    A saved model then works without this package: the stock classes start answers with `[DEC]` and pass on questions as
    they are tokenised.

    Args:
        tokenizer: BLIP's tokenizer, with or without the two tokens.
        bos_token_id: The id of `[DEC]` in the model's `text_config`; `[ENC]` is the next id.

    Raises:
        RecipeError: `[DEC]` has another id, because the tokenizer belongs to another model.
    """
    add_start_tokens(tokenizer, bos_token_id)
    tokenizer.cls_token = QUESTION_START
    start, end = (QUESTION_START, tokenizer.cls_token_id), (tokenizer.sep_token, tokenizer.sep_token_id)
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{start[0]}:0 $A:0 {end[0]}:0",
        pair=f"{start[0]}:0 $A:0 {end[0]}:0 $B:1 {end[0]}:1",
        special_tokens=[start, end],
    )
