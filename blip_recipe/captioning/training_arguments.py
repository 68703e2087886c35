"""The training arguments of captioning and of self-critical training."""

from __future__ import annotations

from dataclasses import dataclass

from blip_recipe.captioning.arguments import CaptionArguments, ScstArguments
from blip_recipe.training.training_arguments import BlipTrainingArguments


@dataclass
class CaptionTrainingArguments(CaptionArguments, BlipTrainingArguments):  # type: ignore[misc]
    """Arguments of [`CaptionTrainer`]: `Seq2SeqTrainingArguments` with BLIP's defaults, and the arguments below.

    `remove_unused_columns`, `predict_with_generate` and `dataloader_persistent_workers` are fixed and cannot be given.

    Args:
        output_dir (`str`): Directory of checkpoints, model, card and scores.
        prompt (`str`, defaults to `""`): Text that every caption starts with, such as `"a picture of "`.
        captions_per_image (`int`, *optional*): Captions of each image in an epoch, sampled in each epoch; by default
            all.
        max_caption_length (`int`, *optional*): Maximum caption length in tokens, prompt included; by default 40, or
            the longest training caption if it is longer.
        max_words (`int`, *optional*): Maximum number of words of a training caption; by default no limit. The original
            has 30.
        normalize_captions (`bool`, defaults to `True`): Whether to clean training captions as the original does: lower
            case, less punctuation, at most `max_words` words.
        augmentation (`str`, defaults to `"blip"`): `"blip"` (random crop, flip and RandAugment) or `"none"`.
        metrics (`list[str]`, defaults to `["bleu", "cider"]`): Any of `bleu`, `meteor`, `rouge_l`, `cider`, `spice`,
            `exact_match`, `clip_score`, `ref_clip_score`, `itm_score`, `self_retrieval`, `diversity`, `chair`.
        eval_metrics (`list[str]`, *optional*): Metrics during training; by default `metrics` without `spice`.
        generation_num_beams (`int`, defaults to 3): Number of beams; 1 is greedy search.
        generation_max_length (`int`, *optional*): Maximum length of generated captions in tokens, prompt included; by
            default the longest training caption.
        generation_min_length (`int`, *optional*): Minimum length of generated captions in tokens, prompt included; by
            default the shortest training caption.
        generation_repetition_penalty (`float`, defaults to 1.0): Penalty for tokens already in the text; 1: none.
        generation_no_repeat_ngram_size (`int`, defaults to 0): Sequences of this many tokens may occur only once in a
            text; 0: no limit.
        generation_length_penalty (`float`, defaults to 1.0): Above 1, beam search prefers longer texts; below, shorter
            ones.
        generation_early_stopping (`bool` or `str`, defaults to `False`): When beam search ends. `True`: when there are
            as many complete texts as beams; `"never"`: when no other text can be better; `False`: when no other is
            likely to be better.
        generation_length_penalty_counts_prompt (`bool`, defaults to `False`): Whether to count the prompt in the
            length by which the score of a beam is divided, as the original does.
        score_tokenizer (`str`, defaults to `"ptb"`): How captions are split for scores: into words, as by the COCO
            tools (`"ptb"`), or into characters in scripts without spaces between words (`"char"`).
        clip_model_name_or_path (`str`, defaults to `"openai/clip-vit-base-patch32"`): The CLIP of `clip_score`,
            `ref_clip_score` and `self_retrieval`.
        itm_model_name_or_path (`str`, *optional*): The BLIP matcher of `itm_score`.
        self_retrieval_by (`str`, defaults to `"clip"`): Features of `self_retrieval`: those of CLIP (`"clip"`) or of
            the matcher (`"itc"`).
        chair_instances (`list[str]`, *optional*): COCO's `instances_*.json` of the scored images, for `chair`.
        chair_synonyms (`str`, *optional*): The synonyms file of CHAIR's authors, for `chair`.
        early_stopping_patience (`int`, *optional*): Stop after this number of evaluations in which
            `metric_for_best_model` did not improve.
        image_cache (`str`, *optional*): Directory for resized copies of large and remote pictures.
        cache_image_embeds (`bool`, defaults to `False`): Whether to encode each picture once and cache the embeddings
            on disk. Needs a frozen image encoder and no augmentation.
        shuffle_buffer_size (`int`, defaults to 1000): Number of images that each worker of a stream
            shuffles at a time.

    Raises:
        RecipeError: A value is out of range, or two values contradict each other.

    Example:
        ```python
        from blip_recipe import CaptionTrainingArguments

        args = CaptionTrainingArguments("outputs/mine", num_train_epochs=5, prompt="a picture of ", metrics=["cider"])
        ```
    """


@dataclass
class ScstTrainingArguments(ScstArguments, CaptionTrainingArguments):  # type: ignore[misc]
    """Arguments of [`ScstTrainer`]: those of [`CaptionTrainingArguments`], and the arguments below.

    Args:
        num_generations (`int`, defaults to 5): Number of captions sampled for each image.
        scst_baseline (`str`, defaults to `"leave_one_out"`): Baseline of a sample's reward: the mean of the image's
            other samples, or its greedy caption (`"greedy"`).
        cider_reward_weight (`float`, defaults to 1.0): Weight of CIDEr-D in the reward.
        bleu_reward_weight (`float`, defaults to 0.0): Weight of BLEU-4 in the reward.
        clip_reward_weight (`float`, defaults to 0.0): Weight of CLIPScore in the reward.
        itm_reward_weight (`float`, defaults to 0.0): Weight of the matcher's probability in the reward.
        kl_coef (`float`, defaults to 0.0): Weight of the KL divergence from the starting model, in nats, subtracted
            from the reward.
        xe_weight (`float`, defaults to 0.0): Weight of the cross entropy, without label smoothing, in the loss.

    Raises:
        RecipeError: A value is out of range.

    Example:
        ```python
        from blip_recipe import ScstTrainingArguments

        args = ScstTrainingArguments("outputs/scst", learning_rate=1e-6, captions_per_image=1, kl_coef=0.01)
        ```
    """
