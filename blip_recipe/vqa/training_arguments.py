"""The training arguments of question answering."""

from __future__ import annotations

from dataclasses import dataclass

from blip_recipe.training.training_arguments import BlipTrainingArguments
from blip_recipe.vqa.arguments import VqaArguments


@dataclass
class VqaTrainingArguments(VqaArguments, BlipTrainingArguments):  # type: ignore[misc]
    """Arguments of [`VqaTrainer`]: `Seq2SeqTrainingArguments` with BLIP's defaults, and the arguments below.

    `remove_unused_columns`, `predict_with_generate` and `dataloader_persistent_workers` are fixed and cannot be given.

    Args:
        output_dir (`str`): Directory of checkpoints, model, card and scores.
        group_questions (`bool`, defaults to `False`): Whether to put the questions about an image in the same batch, so
            that it is read and encoded once.
        answer_list (`str`, *optional*): Choose answers from a list instead of generating them: a file (one answer per
            line, or a JSON list), or `"train"` for the frequent answers of the training questions.
        answer_min_questions (`int`, defaults to 9): Answers of `answer_list="train"` are the most frequent answer of at
            least this many training questions.
        rank_top_k (`int`, defaults to 128): Number of answers of `answer_list` that are compared in full.
        rank_by (`str`, defaults to `"smoothed_loss"`): `"smoothed_loss"` (BLIP's loss with label smoothing) or
            `"likelihood"`.
        max_caption_length (`int`, defaults to 40): Maximum answer length in tokens.
        normalize_captions (`bool`, defaults to `True`): Whether to clean questions as the original does.
        augmentation (`str`, defaults to `"blip"`): `"blip"` (random crop, flip and RandAugment) or `"none"`.
        metrics (`list[str]`, defaults to `["vqa_accuracy"]`): Any of `vqa_accuracy`, `exact_match`.
        generation_num_beams (`int`, defaults to 3): Number of beams; 1 is greedy search.
        generation_max_length (`int`, defaults to 10): Maximum length of generated answers in tokens.
        generation_min_length (`int`, defaults to 1): Minimum length of generated answers in tokens.
        generation_repetition_penalty (`float`, defaults to 1.0): Penalty for tokens already in the text; 1: none.
        generation_no_repeat_ngram_size (`int`, defaults to 0): Sequences of this many tokens may occur only once in a
            text; 0: no limit.
        generation_length_penalty (`float`, defaults to 1.0): Above 1, beam search prefers longer texts; below, shorter
            ones.
        generation_early_stopping (`bool` or `str`, defaults to `False`): When beam search ends. `True`: when there are
            as many complete texts as beams; `"never"`: when no other text can be better; `False`: when no other is
            likely to be better.
        early_stopping_patience (`int`, *optional*): Stop after this number of evaluations in which
            `metric_for_best_model` did not improve.
        cache_image_embeds (`bool`, defaults to `False`): Whether to encode each picture once and cache the embeddings
            on disk; needs a frozen image encoder and no augmentation.
        image_cache (`str`, *optional*): Directory for resized copies of large and remote pictures.
        shuffle_buffer_size (`int`, defaults to 1000): Number of rows that each worker of a stream
            shuffles at a time.

    Raises:
        RecipeError: A value is out of range, or two values contradict each other.

    Example:
        ```python
        from blip_recipe import VqaTrainingArguments

        args = VqaTrainingArguments("outputs/answers", num_train_epochs=10, group_questions=True)
        ```
    """
