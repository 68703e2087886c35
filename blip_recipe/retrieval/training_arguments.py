"""Arguments of the matcher's trainer: transformers' own, with BLIP's defaults, and those of retrieval."""

from __future__ import annotations

from dataclasses import dataclass, field

from blip_recipe.errors import RecipeError
from blip_recipe.retrieval.arguments import RetrievalArguments
from blip_recipe.training.sharding import is_fsdp_requested
from blip_recipe.training.training_arguments import BlipTrainingArguments


@dataclass
class RetrievalTrainingArguments(RetrievalArguments, BlipTrainingArguments):
    """Arguments of [`RetrievalTrainer`]: those of `Seq2SeqTrainingArguments`, with BLIP's defaults, and these.

    Three of them are fixed, as in `BlipTrainingArguments`: `remove_unused_columns`, `predict_with_generate` and
    `dataloader_persistent_workers`.

    Args:
        output_dir (`str`): Where checkpoints, model, card and scores go.
        queue_size (`int`, defaults to 57600): Pairs whose features are compared with.
        momentum (`float`, defaults to 0.995): How much of their weights momentum encoders keep in a step.
        alpha (`float`, defaults to 0.4): Share of what momentum encoders find in the targets of ITC.
        negative_all_rank (`bool`, defaults to `True`): Whether hard negatives are those of all processes.
        rerank_top_k (`int`, defaults to 256): Best candidates by cosine, which ITM ranks again; 0 for none.
        max_caption_length (`int`, defaults to 35): Longest text in tokens.
        normalize_captions (`bool`, defaults to `True`): Clean texts as BLIP's authors do.
        augmentation (`str`, defaults to `"blip"`): `"blip"` (random crop, flip and RandAugment) or `"none"`.
        early_stopping_patience (`int`, *optional*): Stop after so many evaluations without a better
            `metric_for_best_model`.
        image_cache (`str`, *optional*): A directory that keeps large and remote pictures made small.

    Raises:
        RecipeError: A value is out of its range, or two contradict each other.

    Example:
        ```python
        from blip_recipe import RetrievalTrainingArguments

        args = RetrievalTrainingArguments("outputs/matcher", num_train_epochs=6, queue_size=4096)
        ```
    """

    label_smoothing_factor: float = field(default=0.0, metadata={"help": "ITC and ITM have none."})
    generation_max_length: int | None = field(default=None, init=False)
    generation_num_beams: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing_factor:
            raise RecipeError(
                f"task is 'retrieval' and label_smoothing_factor is {self.label_smoothing_factor:g}: its losses have "
                "none. Leave it out."
            )
        if self.save_only_model:
            raise RecipeError(
                "task is 'retrieval' and save_only_model is true, but momentum encoders are part of a checkpoint: "
                "leave it out."
            )
        if is_fsdp_requested(self):
            raise RecipeError(
                "task is 'retrieval' and FSDP is asked for, but momentum encoders are copies of whole weights: start "
                "several processes without FSDP (DistributedDataParallel)."
            )
