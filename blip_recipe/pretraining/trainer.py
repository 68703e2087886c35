"""The trainer of pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.card.facts import TaskWords
from blip_recipe.data.storage import write_json
from blip_recipe.models.processors import save_processor
from blip_recipe.pretraining.collator import PretrainCollator
from blip_recipe.pretraining.data import build_dataset
from blip_recipe.pretraining.modeling import MATCHER, BlipForPretraining
from blip_recipe.pretraining.training_arguments import PretrainTrainingArguments
from blip_recipe.training.caption_scoring import CaptionScoringTrainer, count_predicted_tokens
from blip_recipe.training.momentum import MomentumTrainer
from blip_recipe.training.records import MeanRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class PretrainTrainer(MomentumTrainer, CaptionScoringTrainer):
    """Pre-train a BLIP with three losses: image-text contrastive learning, image-text matching, language modelling.

    The text encoder and the text decoder share all weights except those of self-attention (arXiv 2201.12086, section
    3.2). ITC has momentum encoders, a queue and soft targets, and ITM has hard negatives. The result is a captioner in
    `output_dir` and a matcher in its folder `matcher`. Scores are those of the captioner. All other arguments are those
    of [`CaptionTrainer`].

    Args:
        model (`str` or `PreTrainedModel`, *optional*): Hub id or directory of a captioner or a matcher, a model of one
            of their stock classes, or a `BlipForPretraining`; not quantised.
        args ([`PretrainTrainingArguments`], *optional*): The training arguments.
        train_dataset, eval_dataset: Rows with a picture and captions. Training samples one caption per image and epoch.
        kwargs: Other arguments of [`CaptionTrainer`], except `peft_config`.

    Attributes:
        predictions: `{"image_id", "caption", "references", "scores"}` of each image of the last evaluation.

    Raises:
        RecipeError: The model is of the wrong class, or the columns of a data set are unknown.

    Example:
        ```python
        from blip_recipe import PretrainTrainer, PretrainTrainingArguments

        args = PretrainTrainingArguments("outputs/pretrained", num_train_epochs=20, learning_rate=3e-4)
        trainer = PretrainTrainer("Salesforce/blip-image-captioning-base", args, photos["train"], photos["validation"])
        trainer.train()
        trainer.save_model()
        ```
    """

    task = TaskWords(
        name="pretrain",
        row="image",
        text="caption",
        output="caption",
        title="BLIP, pre-trained",
        label="Image captioning",
        pipeline_tag="image-to-text",
        tag="image-captioning",
        command="caption {model} PICTURE_OR_FOLDER...",
        lora_layers="all linear layers of the text encoder and decoder",
    )
    model_class = BlipForPretraining
    arguments_class = PretrainTrainingArguments
    alpha_epochs = 2  # `pretrain.py` of the original
    predicts_tokens = True

    args: PretrainTrainingArguments

    def prepare_task(self) -> None:
        """Prepare the scorer and the record of the losses."""
        super().prepare_task()
        self.record = MeanRecord()
        self.add_callback(self.record)

    def build_dataset(self, dataset: Any, args: Any, *, training: bool, name: str) -> Any:
        """Convert a data set to a `CaptionDataset`, or to a `CaptionStream` for training."""
        return build_dataset(dataset, args, self.processor, training=training, name=name)

    def build_collator(self, args: Any) -> PretrainCollator:
        """A packed collator with the ids of ITC; the data set cleans captions."""
        return PretrainCollator(self.processor, args.prompt, args.max_caption_length, normalize_captions=False)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The sum of ITC, ITM and the token loss (`pretrain.py` of the original).

        ITC and ITM are averaged over the pairs of the optimiser step, and the token loss over its predicted tokens.
        With gradient accumulation, a pair is still compared only with its own batch and the queue.
        """
        outputs = model(
            **self.with_momentum(self._as_pairs(inputs)),
            labels=inputs["labels"],
            label_smoothing=self.args.label_smoothing_factor,
        )
        sums = {
            "itc": outputs.contrastive_losses.sum(),
            "itm": outputs.matching_losses.mean(1).sum(),
            "lm": outputs.token_losses.sum(),
        }
        own = torch.tensor(self._count([inputs]), device=sums["lm"].device)
        pairs, tokens = own if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        self._record_losses({name: value.detach() for name, value in sums.items()}, own)
        loss = (sums["itc"] + sums["itm"]) / pairs + sums["lm"] / tokens
        return (loss, outputs) if return_outputs else loss

    def _as_pairs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of rows with one caption each, as texts that start with `[CLS]` and their mask."""
        start = torch.full_like(inputs["input_ids"][:, :1], self.processor.tokenizer.cls_token_id)
        # Padding has position 0, as the first token has.
        mask = (inputs["position_ids"] > 0).long()
        mask[:, 0] = 1
        input_ids = torch.cat([start, inputs["input_ids"][:, 1:]], dim=1)
        return {**inputs, "input_ids": input_ids, "attention_mask": mask}

    @staticmethod
    def _count(batches: list[Any]) -> list[int]:
        """The numbers of pairs and of predicted tokens."""
        labels = [batch["labels"] for batch in batches]
        return [sum(map(len, labels)), sum(int(count_predicted_tokens(each).sum()) for each in labels)]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Numbers of pairs and of predicted tokens in an optimiser step over all processes, `(2,)`."""
        return self.accelerator.reduce(torch.tensor(self._count(batch_samples), device=device), "sum")

    def _record_losses(self, sums: dict[str, torch.Tensor], counts: torch.Tensor) -> None:
        """Add the mean losses of a batch of all processes to the record, weighted by its pairs."""
        pairs, tokens = counts
        losses = [sums["itc"], sums["itm"], sums["lm"] / tokens * pairs]
        total = self.accelerator.reduce(torch.stack([pairs.to(losses[0]), *losses]), "sum")
        self.record.add(dict(zip(("images", "itc_loss", "itm_loss", "lm_loss"), total.tolist(), strict=True)))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Like Trainer's, with the mean of each loss since the last log line."""
        if "loss" in logs:
            logs = logs | self.record.pop_means()
        super().log(logs, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Like Trainer's, with the matcher of the checkpoint."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.plain_model.load_matcher(Path(resume_from_checkpoint, MATCHER, "model.safetensors"))

    def _load_best_model(self) -> None:
        """Like Trainer's, with the matcher of the best checkpoint."""
        super()._load_best_model()
        self.plain_model.load_matcher(Path(str(self.state.best_model_checkpoint), MATCHER, "model.safetensors"))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Like Trainer's, without the weights that only the matcher has."""
        load_result.missing_keys.clear()
        super()._issue_warnings_after_load(load_result)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Like Trainer's, with the processor of the matcher."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_processor(self.processor, Path(output_dir or self.output_dir) / MATCHER)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Like Trainer's; the matcher gets a `recipe.json` of its own, which tells `evaluate` its task."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and not _internal_call:
            names = ("normalize_captions", "max_caption_length")
            recipe = {"task": "retrieval"} | {name: getattr(self.args, name) for name in names}
            write_json(Path(output_dir or self.output_dir) / MATCHER / "recipe.json", recipe)

    @classmethod
    def describe_settings(cls, args: Any, images: int, texts_per_image: float) -> dict[str, str]:
        """The settings of the three losses."""
        return {
            "losses": "ITC + ITM + language modelling",
            "image-caption pairs per step": f"about {images:,}",
            "captions per image and step": "1",
            **cls.describe_momentum(args),
            "label smoothing": f"{args.label_smoothing_factor:g} (language modelling)",
            "training captions": ("cleaned as BLIP's authors do" if args.normalize_captions else "as written")
            + f", at most {args.max_caption_length} tokens",
        }
