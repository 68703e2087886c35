"""The trainer of captioners: the loss, the generation step and the scores of generated captions."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.trainer_pt_utils import LengthGroupedSampler

from blip_recipe.captioning.collator import CaptionCollator
from blip_recipe.captioning.data import build_dataset, tokens_per_image
from blip_recipe.captioning.modeling import BlipForCaptioning, caption_row, generate_token_ids
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.card.facts import TaskWords
from blip_recipe.card.rendering import format_code
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.errors import RecipeError
from blip_recipe.metrics import CaptionScorer
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.models.text import IGNORED, decode_texts
from blip_recipe.training.embeddings import cache_embeddings, check_frozen
from blip_recipe.training.memory import choose_checkpointing
from blip_recipe.training.trainer import BlipTrainer

if TYPE_CHECKING:
    from transformers import BlipProcessor, EvalPrediction, PreTrainedTokenizerBase


def count_predicted_tokens(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens of each row of `labels` `(images, tokens)` are predicted."""
    return (labels[:, 1:] != IGNORED).sum(1)


class EpochLengthSampler(LengthGroupedSampler):
    """Rows of about the same length together, else in the order of a seed and an epoch, which resumption repeats."""

    def __init__(self, batch_size: int, *, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of `epoch` from now on."""
        self.generator.manual_seed(self.seed + epoch)


class CaptionTrainer(BlipTrainer):
    """Fine-tunes a BLIP captioner, scores it, describes it in a model card, and publishes it.

    A `Seq2SeqTrainer` that trains BLIP as its authors do: `[DEC]` first, prompt and padding not predicted, the loss a
    mean over the predicted tokens of the whole optimiser step, each image encoded once for all its captions. Captions
    are generated from pixels and the prompt alone, and scored against all references of an image.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`, *optional*): Hub id or directory of a captioner, a
            `BlipForConditionalGeneration`, our `BlipForCaptioning`, or a `PeftModel` of one of these. A stock model
            shares its weights with the one that is trained.
        args ([`CaptionTrainingArguments`], *optional*): How it is trained.
        train_dataset (`Dataset`, `IterableDataset` or `torch.utils.data.Dataset`, *optional*): Rows with a picture (an
            `Image` column, paths, URLs or bytes) and captions (a text, a list, structs, numbered columns) under the
            names that are usual. Rows that share an `image_id` are one image; a text with line breaks is several
            captions.
        eval_dataset (the same, or a dictionary of these, *optional*): What is scored.
        processing_class (`BlipProcessor`, *optional*): Image processor and tokenizer; by default the model's own.
        peft_config (`LoraConfig`, *optional*): Train an adapter in place of all weights. `target_modules` may be left
            out: every attention and feed-forward layer of the text is then adapted.
        data_collator (`Callable`, *optional*): By default a packed [`CaptionCollator`]. One of your own makes of rows
            `{"row", "image", "captions"}` what that returns: captions are trained on without `row`, and scored with it.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*): Scores in place of `args.metrics`. It is given
            token ids of the generated captions and, as labels, of the first reference of each image; all texts are in
            `trainer.predictions`.
        model_init (`Callable`, *optional*): Gives a new model, in place of `model`; for `hyperparameter_search`.
        callbacks (`list[TrainerCallback]`, *optional*): Besides those of the trainer.
        kwargs: As `Seq2SeqTrainer`'s: `optimizers`.

    Attributes:
        predictions: `{"image_id", "caption", "references", "scores"}` of each image that was scored last.

    Raises:
        RecipeError: The model is none of these, or the columns of a data set are not known.

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

    task = TaskWords(
        name="captioning",
        row="image",
        text="caption",
        output="caption",
        title="BLIP captions",
        label="Image captioning",
        pipeline_tag="image-to-text",
        tag="image-captioning",
        command="caption {model} PICTURE_OR_FOLDER...",
        lora_layers="all linear layers of the text decoder",
    )
    model_class = BlipForCaptioning
    arguments_class = CaptionTrainingArguments
    predict_text = staticmethod(caption_row)

    args: CaptionTrainingArguments

    def prepare_task(self) -> None:
        """The scorer; embeddings of pictures where they are kept; how much memory a step takes."""
        super().prepare_task()
        if isinstance(self.data_collator, CaptionCollator):
            if not self.data_collator.packed:
                raise RecipeError(
                    "data_collator is a CaptionCollator with packed=False, whose batches are for the stock "
                    "Seq2SeqTrainer: expected a packed one, or none."
                )
            self.data_collator.bos_token_id = self.plain_model.config.text_config.bos_token_id
        self.scorer = CaptionScorer(self.args.metrics)
        # Fetched now, not after hours of training.
        self.scorer.prepare()
        weakref.finalize(self, self.scorer.close)
        if self.args.cache_image_embeds:
            check_frozen(self.plain_model)
            self._cache_embeddings([self.train_dataset, self.eval_dataset])
        is_open = self.args.auto_checkpointing and self.args.device.type == "cuda"
        if is_open and isinstance(self.train_dataset, CaptionDataset):
            self.estimate_memory(self.model, self.args, self.train_dataset.rows, self.processor)

    def build_dataset(self, dataset: Any, args: Any, *, training: bool) -> Any:
        """`CaptionDataset`, or a `CaptionStream` to train on."""
        return build_dataset(dataset, args, self.processor, training=training)

    def build_collator(self, args: Any) -> CaptionCollator:
        """Packed batches; the data set cleans captions."""
        return CaptionCollator(self.processor, args.prompt, args.max_caption_length, normalize_captions=False)

    def _prepare_dataset(self, dataset: Any, args: Any, *, training: bool) -> Any:
        wrapped = super()._prepare_dataset(dataset, args, training=training)
        if args.cache_image_embeds and wrapped is not dataset and hasattr(self, "accelerator"):
            self._cache_embeddings([wrapped])
        return wrapped

    def _cache_embeddings(self, datasets: list[Any]) -> None:
        """Encode the pictures of data sets; those that are kept already are read."""
        cache_embeddings(self, self.processor, [each for each in datasets if isinstance(each, CaptionDataset)])

    @classmethod
    def estimate_memory(cls, model: Any, args: Any, rows: Any, processor: BlipProcessor) -> int | None:
        """By tracing a step."""
        tokens = cls.tokens_per_image(args, rows, processor.tokenizer)
        return choose_checkpointing(model, args, tokens, copies=cls.frozen_copies(model, args))

    @classmethod
    def tokens_per_image(cls, args: Any, rows: Any, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens that an image brings to a step."""
        return tokens_per_image(args, rows, tokenizer)

    @classmethod
    def frozen_copies(cls, model: Any, args: Any) -> int:
        """Copies of the model that are kept beside it."""
        return 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of token losses over `num_items_in_batch`, the predicted tokens of the whole optimiser step.

        Dividing by the tokens of the step, and not of the batch, makes the loss and its gradient independent of batch
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

    def _run(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """`CaptioningOutput` of the model for a batch; row numbers are for the scores."""
        batch = {key: value for key, value in inputs.items() if key != "row"}
        return model(**batch, label_smoothing=self.args.label_smoothing_factor)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As Trainer's, which does not know how long the captions of an image are."""
        dataset = train_dataset or self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, CaptionDataset):
            return super()._get_train_sampler(train_dataset)
        # Two tokens of each caption are no words.
        lengths = [sum(len(caption.split()) + 2 for caption in captions) for captions in dataset.rows["captions"]]
        self.epoch_sampler = EpochLengthSampler(self.args.train_batch_size, lengths=lengths, seed=self.args.seed)
        return self.epoch_sampler

    def prediction_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[None, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Generate from pixels and prompt alone, and sum the loss of each image.

        Returns:
            Nothing for Trainer's mean of batch means; token ids `(images, generation_max_length)`; and, each of shape
            `(images,)`, row numbers, sums of token losses and numbers of predicted tokens.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            outputs = self._run(model, inputs)
            token_ids = self.generate(outputs.image_embeds)
        return None, token_ids, (inputs["row"], outputs.token_losses.sum(1), count_predicted_tokens(inputs["labels"]))

    def generate(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Token ids `(images, tokens)` of the captions, padded to the longest that is allowed, without the prompt.

        `image_embeds` `(images, patches, width)` are those of the loss: an image is encoded once.
        """
        generate_kwargs = self.generate_kwargs()
        token_ids = generate_token_ids(
            self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
            self.processor.tokenizer,
            image_embeds,
            self.args.prompt,
            **generate_kwargs,
        )
        padding = max(0, self.max_generated_tokens(generate_kwargs) - token_ids.shape[1])
        return F.pad(token_ids, (0, padding), value=self.processor.tokenizer.pad_token_id)

    def score_on_this_process(self, prediction: EvalPrediction) -> dict[str, float]:
        """Token-mean loss, and the scores of generated captions against all references.

        Fills `predictions` with one record an image: `image_id`, `caption`, `references`, `scores`.
        """
        rows, loss_sums, counts = prediction.label_ids  # type: ignore[misc]
        scored = self.scored_dataset.rows.select_columns(["image_id", "captions"])[rows.tolist()]
        captions = decode_texts(self.processor.tokenizer, prediction.predictions)  # type: ignore[arg-type]
        references = dict(zip(scored["image_id"], scored["captions"], strict=True))
        texts = dict(zip(scored["image_id"], captions, strict=True))
        scores = self.scorer.score(texts, references, self.current_metrics())
        self.predictions = scores.records(texts, references)
        return {"loss": float(loss_sums.sum(dtype="float64") / counts.sum())} | scores.corpus

    def reference_ids(self) -> list[list[int]]:
        """Token ids of the first reference of each image that was scored."""
        references = [each["references"][0] for each in self.predictions]
        return self.processor.tokenizer(references).input_ids

    @property
    def tokenized_with_java(self) -> bool:
        """Whether the PTB tokenizer itself cut the captions before they were scored."""
        return self.scorer.java is not None

    @classmethod
    def decoding(cls, args: Any) -> DecodingSettings:
        """How captions are generated."""
        return DecodingSettings(
            args.prompt, args.generation_num_beams, args.generation_max_length, args.generation_min_length
        )

    @classmethod
    def describe_settings(cls, args: Any, images: int, texts_per_image: float) -> dict[str, str]:
        """Captions of a step, and how they are read."""
        per_image = min(args.captions_per_image or texts_per_image, texts_per_image)
        return {
            "image-caption pairs a step": f"about {images * per_image:,.0f}",
            "captions of an image a step": str(args.captions_per_image or "all"),
            "label smoothing": f"{args.label_smoothing_factor:g}",
            "training captions": ("cleaned as BLIP's authors do" if args.normalize_captions else "as written")
            + f", at most {args.max_caption_length} tokens",
            "prompt": format_code(args.prompt) if args.prompt else "none",
        }
