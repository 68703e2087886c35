"""The training arguments of pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from blip_recipe.pretraining.arguments import PretrainArguments
from blip_recipe.training.training_arguments import MomentumTrainingArguments


@dataclass
class PretrainTrainingArguments(PretrainArguments, MomentumTrainingArguments):  # type: ignore[misc]
    """Arguments of [`PretrainTrainer`]: `Seq2SeqTrainingArguments` with BLIP's defaults, and the arguments below.

    `remove_unused_columns`, `predict_with_generate` and `dataloader_persistent_workers` are fixed and cannot be given.

    Args:
        output_dir (`str`): Directory of checkpoints, models, card and scores.
        queue_size (`int`, defaults to 57600): Number of pairs from earlier steps that ITC compares each pair with.
        momentum (`float`, defaults to 0.995): Share of their own weights that the momentum encoders keep at each step.
        alpha (`float`, defaults to 0.4): Share of the momentum encoders' similarities in the targets of ITC.
        negative_all_rank (`bool`, defaults to `False`): Whether to draw hard negatives from the batches of
            all processes, not only of the own one.
        max_caption_length (`int`, defaults to 30): Maximum text length in tokens.
        max_words (`int`, *optional*, defaults to 30): Maximum number of words of a training caption; None: no limit.
        normalize_captions (`bool`, defaults to `True`): Whether to clean training captions as the original does.
        augmentation (`str`, defaults to `"blip"`): `"blip"` (random crop, flip and RandAugment) or `"none"`.
        label_smoothing_factor (`float`, defaults to 0.1): Label smoothing of the token loss.
        metrics (`list[str]`, defaults to `["bleu", "cider"]`): Scores of generated captions, as for
            [`CaptionTrainingArguments`], which also describes `eval_metrics`, `score_tokenizer` and `generation_...`.
        early_stopping_patience (`int`, *optional*): Stop after this number of evaluations in which
            `metric_for_best_model` did not improve.
        image_cache (`str`, *optional*): Directory for resized copies of large and remote pictures.
        shuffle_buffer_size (`int`, defaults to 1000): Number of rows that each worker of a stream
            shuffles at a time.

    Raises:
        RecipeError: A value is out of range, or two values contradict each other.

    Example:
        ```python
        from blip_recipe import PretrainTrainingArguments

        args = PretrainTrainingArguments("outputs/pretrained", num_train_epochs=20, learning_rate=3e-4)
        ```
    """
