"""The trainer of captioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler

from blip_recipe.captioning.data import build_dataset, tokens_per_image
from blip_recipe.captioning.modeling import BlipForCaptioning
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.captioning.words import WORDS
from blip_recipe.card.rendering import format_code
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.models.captioner import caption_row
from blip_recipe.training.caption_scoring import CaptionScoringTrainer, count_predicted_tokens
from blip_recipe.training.memory import caption_step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from blip_recipe.training.memory import Step


class EpochLengthSampler(LengthGroupedSampler):
    """A `LengthGroupedSampler` whose order depends only on seed and epoch, so that it is the same when resuming."""

    def __init__(self, batch_size: int, *, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Use the order of `epoch`."""
        self.generator.manual_seed(self.seed + epoch)


class CaptionTrainer(CaptionScoringTrainer):
    """Fine-tune a BLIP captioner, score it, write its model card, and push it to the Hub.

    A `Seq2SeqTrainer` that trains BLIP as the original does: captions start with `[DEC]`, prompt and padding are not
    predicted, and the loss is the mean over the predicted tokens of the optimiser step. Each image is encoded once for
    all its captions. Captions are generated from pixels and the prompt, and scored against all references of an image.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`, *optional*): Hub id or directory of a captioner, a
            `BlipForConditionalGeneration`, a `BlipForCaptioning`, or a `PeftModel` of one of these. A stock model is
            trained in place.
        args ([`CaptionTrainingArguments`], *optional*): The training arguments.
        train_dataset (`Dataset`, `IterableDataset` or `torch.utils.data.Dataset`, *optional*): Rows with a picture (an
            `Image` column, paths, URLs or bytes) and captions (a text, a list, structs, numbered columns) in columns
            with common names. Rows with the same `image_id` are one image. A text with line breaks is several captions.
            If the columns are exactly `image`, `captions`, `prompt` and perhaps `image_id`, each row has its own
            prompt, which the model is not trained to predict. With a column `group` too, `evaluate` also scores each
            group.
        eval_dataset (the same, or a dictionary of these, *optional*): The data set, or data sets, to evaluate.
        processing_class (`BlipProcessor`, *optional*): Image processor and tokenizer; by default the model's own.
        peft_config (`LoraConfig`, *optional*): Train this adapter instead of all weights. Without `target_modules`,
            every attention and feed-forward layer of the text decoder is adapted.
        data_collator (`Callable`, *optional*): By default a packed [`CaptionCollator`]. Your own collator takes rows
            `{"row", "image", "captions"}` and returns the batches of a packed one; `row` is only needed in evaluation.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*): Replaces the scores of `args.metrics`. It gets
            the token ids of the generated captions and, as labels, of the first reference of each image. All texts are
            in `trainer.predictions`.
        model_init (`Callable`, *optional*): Returns a new model, instead of `model`; for `hyperparameter_search`.
        callbacks (`list[TrainerCallback]`, *optional*): Additional callbacks.
        kwargs: Other arguments of `Seq2SeqTrainer`, such as `optimizers`.

    Attributes:
        predictions: `{"image_id", "caption", "references", "scores"}` of each image of the last evaluation.

    Raises:
        RecipeError: The model is of the wrong class, or the columns of a data set are unknown.

    Example:
        ```python
        from datasets import load_dataset
        from peft import LoraConfig
        from blip_recipe import CaptionTrainer, CaptionTrainingArguments

        photos = load_dataset("imagefolder", data_dir="my_folder")
        trainer = CaptionTrainer(
            model="Salesforce/blip-image-captioning-base",
            args=CaptionTrainingArguments("outputs/mine", num_train_epochs=5, prompt="a picture of "),
            train_dataset=photos["train"],
            eval_dataset=photos["validation"],
            peft_config=LoraConfig(r=16),
        )
        trainer.train()
        print(trainer.evaluate())
        trainer.push_to_hub("me/my-captioner")
        ```
    """

    task = WORDS
    model_class = BlipForCaptioning
    arguments_class = CaptionTrainingArguments
    predict_text = staticmethod(caption_row)

    args: CaptionTrainingArguments

    def build_dataset(self, dataset: Any, args: Any, *, training: bool, name: str) -> Any:
        """Convert a data set to a `CaptionDataset`, or to a `CaptionStream` for training."""
        return build_dataset(dataset, args, self.processor, training=training, name=name)

    @classmethod
    def traced_step(cls, args: Any, rows: Any, tokenizer: PreTrainedTokenizerBase) -> Step:
        """The step of a captioner with the longest captions."""
        return caption_step(args.train_batch_size, cls.tokens_per_image(args, rows, tokenizer))

    @classmethod
    def tokens_per_image(cls, args: Any, rows: Any, tokenizer: PreTrainedTokenizerBase) -> int:
        """The maximum number of tokens per image and step."""
        return tokens_per_image(args, rows, tokenizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of token losses divided by `num_items_in_batch`, the predicted tokens of the optimiser step.

        Dividing by the tokens of the step instead of the batch makes loss and gradient independent of batch
        size, gradient accumulation and number of processes.
        """
        outputs = self._run(model, inputs)
        tokens = (
            count_predicted_tokens(inputs["labels"]).sum()
            if num_items_in_batch is None
            else self.items_per_process(num_items_in_batch)
        )
        loss = outputs.token_losses.sum() / tokens
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Like Trainer's, with the caption lengths for `group_by_length`."""
        dataset = train_dataset or self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, CaptionDataset):
            return super()._get_train_sampler(train_dataset)
        # Plus 2 for `[DEC]` and `[SEP]`.
        lengths = [sum(len(caption.split()) + 2 for caption in captions) for captions in dataset.rows["captions"]]
        self.epoch_sampler = EpochLengthSampler(self.args.train_batch_size, lengths=lengths, seed=self.args.seed)
        return self.epoch_sampler

    @classmethod
    def describe_settings(cls, args: Any, images: int, texts_per_image: float) -> dict[str, str]:
        """The settings of captions and prompt."""
        per_image = min(args.captions_per_image or texts_per_image, texts_per_image)
        return {
            "image-caption pairs per step": f"about {images * per_image:,.0f}",
            "captions per image and step": str(args.captions_per_image or "all"),
            "label smoothing": f"{args.label_smoothing_factor:g}",
            "training captions": ("cleaned as BLIP's authors do" if args.normalize_captions else "as written")
            + f", at most {args.max_caption_length} tokens",
            "prompt": "each image's own"
            if args.has_own_prompts
            else format_code(args.prompt)
            if args.prompt
            else "none",
        }
