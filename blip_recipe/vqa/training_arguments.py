"""Arguments of the answerer's trainer: transformers' own, with BLIP's defaults, and those of question answering."""

from __future__ import annotations

from dataclasses import dataclass

from blip_recipe.training.training_arguments import BlipTrainingArguments
from blip_recipe.vqa.arguments import VqaArguments


@dataclass
class VqaTrainingArguments(VqaArguments, BlipTrainingArguments):  # type: ignore[misc]
    """Arguments of [`VqaTrainer`]: those of `Seq2SeqTrainingArguments`, with BLIP's defaults, and these.

    Three of them are fixed, as in `BlipTrainingArguments`: `remove_unused_columns`, `predict_with_generate` and
    `dataloader_persistent_workers`.

    Args:
        output_dir (`str`): Where checkpoints, model, card and scores go.
        group_questions (`bool`, defaults to `False`): Bring the questions about an image to a step together: it is read
            and encoded once for them.
        max_caption_length (`int`, defaults to 40): Longest answer in tokens.
        normalize_captions (`bool`, defaults to `True`): Clean questions as BLIP's authors do.
        augmentation (`str`, defaults to `"blip"`): `"blip"` (random crop, flip and RandAugment) or `"none"`.
        metrics (`list[str]`, defaults to `["vqa_accuracy"]`): Of `vqa_accuracy`, `exact_match`.
        generation_num_beams (`int`, defaults to 3): Beams; 1 is greedy search.
        generation_max_length (`int`, defaults to 10): Longest generated answer in tokens.
        generation_min_length (`int`, defaults to 1): Shortest generated answer in tokens.
        early_stopping_patience (`int`, *optional*): Stop after so many evaluations without a better
            `metric_for_best_model`.
        image_cache (`str`, *optional*): A directory that keeps large and remote pictures made small.

    Raises:
        RecipeError: A value is out of its range, or two contradict each other.

    Example:
        ```python
        from blip_recipe import VqaTrainingArguments

        args = VqaTrainingArguments("outputs/answers", num_train_epochs=10, group_questions=True)
        ```
    """
