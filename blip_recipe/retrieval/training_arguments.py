"""The training arguments of retrieval."""

from __future__ import annotations

from dataclasses import dataclass, field

from blip_recipe.errors import RecipeError
from blip_recipe.retrieval.arguments import RetrievalArguments
from blip_recipe.training.training_arguments import MomentumTrainingArguments


@dataclass
class RetrievalTrainingArguments(RetrievalArguments, MomentumTrainingArguments):
    """Arguments of [`RetrievalTrainer`]: `Seq2SeqTrainingArguments` with BLIP's defaults, and the arguments below.

    `remove_unused_columns`, `predict_with_generate` and `dataloader_persistent_workers` are fixed and cannot be given.

    Args:
        output_dir (`str`): Directory of checkpoints, model, card and scores.
        queue_size (`int`, defaults to 57600): Number of pairs from earlier steps that ITC compares each pair with.
        momentum (`float`, defaults to 0.995): Share of their own weights that the momentum encoders keep at each step.
        alpha (`float`, defaults to 0.4): Share of the momentum encoders' similarities in the targets of ITC.
        negative_all_rank (`bool`, defaults to `True`): Whether to draw hard negatives from the batches of
            all processes, not only of the own one.
        rerank_top_k (`int`, defaults to 256): Number of candidates (best by cosine) that ITM re-ranks; 0 for none.
        max_caption_length (`int`, defaults to 35): Maximum text length in tokens.
        normalize_captions (`bool`, defaults to `True`): Whether to clean texts as the original does.
        augmentation (`str`, defaults to `"blip"`): `"blip"` (random crop, flip and RandAugment) or `"none"`.
        early_stopping_patience (`int`, *optional*): Stop after this number of evaluations in which
            `metric_for_best_model` did not improve.
        image_cache (`str`, *optional*): Directory for resized copies of large and remote pictures.
        cache_image_embeds (`bool`, defaults to `False`): Whether to encode each picture once and cache the embeddings
            on disk; needs a frozen image encoder and no augmentation.
        shuffle_buffer_size (`int`, defaults to 1000): Number of rows that each worker of a stream
            shuffles at a time.

    Raises:
        RecipeError: A value is out of range, or two values contradict each other.

    Example:
        ```python
        from blip_recipe import RetrievalTrainingArguments

        args = RetrievalTrainingArguments("outputs/matcher", num_train_epochs=6, queue_size=4096)
        ```
    """

    label_smoothing_factor: float = field(default=0.0, metadata={"help": "Must be 0 for retrieval."})
    generation_max_length: int | None = field(default=None, init=False)
    generation_num_beams: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing_factor:
            raise RecipeError(
                f"task is 'retrieval' and label_smoothing_factor is {self.label_smoothing_factor:g}: its losses do not "
                "use label smoothing. Leave it out."
            )
