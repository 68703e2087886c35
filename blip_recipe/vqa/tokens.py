"""The first tokens: `[ENC]` of a question, `[DEC]` of an answer.

Source: `init_tokenizer` in `models/blip.py` and `BLIP_VQA.forward` in `models/blip_vqa.py` of the original repository.
Published checkpoints come with BERT's plain tokenizer, which knows neither and puts `[CLS]` in front: the model then
sees a first token that it was not trained with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers.processors import TemplateProcessing

from blip_recipe.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION_START, ANSWER_START = "[ENC]", "[DEC]"


def use_question_token(tokenizer: PreTrainedTokenizerBase, bos_token_id: int) -> None:
    """Let `tokenizer` put `[ENC]` in front of texts, in place of `[CLS]`, also where it is saved and loaded.

    So a saved model is asked right without this package too: the stock classes begin answers with `[DEC]` by
    themselves, and leave questions as the tokenizer gives them.

    Args:
        tokenizer: BLIP's, with or without the two tokens.
        bos_token_id: `[DEC]`, as the model's `text_config` has it; `[ENC]` comes after it.

    Raises:
        RecipeError: The tokenizer is another model's: `[DEC]` is not where the model has it.
    """
    tokenizer.add_special_tokens({"bos_token": ANSWER_START})
    tokenizer.add_special_tokens({"additional_special_tokens": [QUESTION_START]})
    found = tokenizer.convert_tokens_to_ids(ANSWER_START)
    if found != bos_token_id:
        raise RecipeError(
            f"The tokenizer has {ANSWER_START} as token {found}, the model's text_config has bos_token_id "
            f"{bos_token_id}: expected the tokenizer that the model was trained with."
        )
    tokenizer.cls_token = QUESTION_START
    start, end = (QUESTION_START, tokenizer.cls_token_id), (tokenizer.sep_token, tokenizer.sep_token_id)
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{start[0]}:0 $A:0 {end[0]}:0",
        pair=f"{start[0]}:0 $A:0 {end[0]}:0 $B:1 {end[0]}:1",
        special_tokens=[start, end],
    )
