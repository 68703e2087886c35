"""Arguments of the captioner's trainers: transformers' own, with BLIP's defaults, and those of captioning."""

from __future__ import annotations

from dataclasses import dataclass

from blip_recipe.captioning.arguments import CaptionArguments, ScstArguments
from blip_recipe.training.training_arguments import BlipTrainingArguments


@dataclass
class CaptionTrainingArguments(CaptionArguments, BlipTrainingArguments):  # type: ignore[misc]
    """Arguments of [`CaptionTrainer`]: those of `Seq2SeqTrainingArguments`, with BLIP's defaults, and these.

    Three of them are fixed, as in `BlipTrainingArguments`: `remove_unused_columns`, `predict_with_generate` and
    `dataloader_persistent_workers`.

    Args:
        output_dir (`str`): Where checkpoints, model, card and scores go.
        prompt (`str`, defaults to `""`): Words every caption starts with, such as `"a picture of "`.
        captions_per_image (`int`, *optional*): Captions that an image brings to a step, drawn anew each epoch; by
            default all of them.
        max_caption_length (`int`, defaults to 40): Longest caption in tokens, prompt included.
        normalize_captions (`bool`, defaults to `True`): Clean training captions as BLIP's authors do: lower case, some
            punctuation left out, at most 30 words.
        augmentation (`str`, defaults to `"blip"`): `"blip"` (random crop, flip and RandAugment) or `"none"`.
        metrics (`list[str]`, defaults to `["bleu", "cider"]`): Of `bleu`, `meteor`, `rouge_l`, `cider`, `spice`,
            `exact_match`.
        eval_metrics (`list[str]`, *optional*): Metrics while training; by default `metrics` without `spice`.
        generation_num_beams (`int`, defaults to 3): Beams; 1 is greedy search.
        generation_max_length (`int`, defaults to 20): Longest generated caption in tokens, prompt included.
        generation_min_length (`int`, defaults to 5): Shortest generated caption in tokens, prompt included.
        early_stopping_patience (`int`, *optional*): Stop after so many evaluations without a better
            `metric_for_best_model`.
        image_cache (`str`, *optional*): A directory that keeps large and remote pictures made small.
        cache_image_embeds (`bool`, defaults to `False`): Encode each picture once and keep the result on disk, for a
            frozen image encoder without augmentation.
        shuffle_buffer_size (`int`, defaults to 1000): Images of a stream that are held and drawn from.

    Raises:
        RecipeError: A value is out of its range, or two contradict each other.

    Example:
        ```python
        from blip_recipe import CaptionTrainingArguments

        args = CaptionTrainingArguments("outputs/mine", num_train_epochs=5, prompt="a picture of ", metrics=["cider"])
        ```
    """


@dataclass
class ScstTrainingArguments(ScstArguments, CaptionTrainingArguments):  # type: ignore[misc]
    """Arguments of [`ScstTrainer`]: those of [`CaptionTrainingArguments`], and these.

    Args:
        num_generations (`int`, defaults to 5): Captions sampled of an image.
        scst_baseline (`str`, defaults to `"leave_one_out"`): A sample is compared with the mean of the image's others,
            or with its greedy caption (`"greedy"`).
        cider_reward_weight (`float`, defaults to 1.0): Worth of a CIDEr-D of 1.
        bleu_reward_weight (`float`, defaults to 0.0): Worth of a BLEU-4 of 1.
        kl_coef (`float`, defaults to 0.0): What a nat of divergence from the starting model costs a caption.
        xe_weight (`float`, defaults to 0.0): Share of the cross entropy, without label smoothing, in the loss.

    Raises:
        RecipeError: A value is out of its range.

    Example:
        ```python
        from blip_recipe import ScstTrainingArguments

        args = ScstTrainingArguments("outputs/scst", learning_rate=1e-6, captions_per_image=1, kl_coef=0.01)
        ```
    """
