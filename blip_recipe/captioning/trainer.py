"""`Seq2SeqTrainer` for captioning: the loss, the generation step and the scores of generated captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction
from transformers.trainer_pt_utils import LengthGroupedSampler

from blip_recipe.captioning.collator import CaptionCollator
from blip_recipe.captioning.modeling import IGNORED, BlipForCaptioning, decode_captions, generate_token_ids
from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.training.trainer import BlipTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BlipProcessor

    from blip_recipe.recipe.parsing import DataArguments
    from blip_recipe.training.arguments import CaptionTrainingArguments


def predicted_tokens(labels: torch.Tensor) -> torch.Tensor:
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
    """Trains and scores a BLIP captioner.

    Args:
        model: `BlipForCaptioning`, or peft's wrapper of it.
        args: Trainer's arguments; `label_smoothing_factor` is applied by the model.
        processor: BLIP's image processor and tokenizer.
        data: The recipe's data keys (`prompt`, `max_caption_length`).
        kwargs: As `BlipTrainer`'s: `generation`, a `CaptionScorer` as `scorer`, and `CaptionDataset`s.
    """

    def __init__(
        self,
        model: BlipForCaptioning | PeftModel,
        args: CaptionTrainingArguments,
        *,
        processor: BlipProcessor,
        data: DataArguments,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            args,
            processor=processor,
            data=data,
            data_collator=CaptionCollator(
                processor, model.config.text_config.bos_token_id, data.prompt, data.max_caption_length
            ),
            **kwargs,
        )

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
        if num_items_in_batch is None:
            num_items_in_batch = predicted_tokens(inputs["labels"]).sum()
        elif self.args.average_tokens_across_devices:
            # The tokens of all processes, over which DistributedDataParallel takes the mean of gradients.
            num_items_in_batch = num_items_in_batch / self.accelerator.num_processes
        loss = outputs.token_losses.sum() / num_items_in_batch
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
        return None, token_ids, (inputs["row"], outputs.token_losses.sum(1), predicted_tokens(inputs["labels"]))

    def generate(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Token ids `(images, generation_max_length)` of the captions, padded, without the prompt.

        `image_embeds` `(images, patches, width)` are those of the loss: an image is encoded once.
        """
        token_ids = generate_token_ids(
            self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
            self.processor.tokenizer,
            image_embeds,
            self.data.prompt,
            **self.generation.generate_kwargs(),
        )
        padding = self.generation.generation_max_length - token_ids.shape[1]
        return F.pad(token_ids, (0, padding), value=self.processor.tokenizer.pad_token_id)

    def score_on_this_process(self, prediction: EvalPrediction) -> dict[str, float]:
        """Token-mean loss, and the scores of generated captions against all references.

        Fills `predictions` with one record an image: `image_id`, `caption`, `references`, `scores`.
        """
        rows, loss_sums, counts = prediction.label_ids  # type: ignore[misc]
        scored = self.scored_dataset.rows.select_columns(["image_id", "captions"])[rows.tolist()]
        captions = decode_captions(self.processor.tokenizer, prediction.predictions)  # type: ignore[arg-type]
        references = dict(zip(scored["image_id"], scored["captions"], strict=True))
        metrics = self.generation.metrics_while_training() if self.is_in_train else self.generation.metrics
        scores = self.scorer.score(dict(zip(scored["image_id"], captions, strict=True)), references, metrics)
        self.predictions = [
            {
                "image_id": image_id,
                "caption": caption,
                "references": references[image_id],
                "scores": scores.per_image[image_id],
            }
            for image_id, caption in zip(scored["image_id"], captions, strict=True)
        ]
        return {"loss": float(loss_sums.sum(dtype="float64") / counts.sum())} | scores.corpus
