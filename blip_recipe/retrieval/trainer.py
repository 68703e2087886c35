"""Training and scoring of a BLIP that matches: ITC and ITM, then recall in both directions."""

from __future__ import annotations

from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import DataLoader, Subset

from blip_recipe.data.captions import normalize_caption
from blip_recipe.retrieval.collator import PairCollator, image_ids
from blip_recipe.retrieval.losses import MATCHING, split_loss
from blip_recipe.retrieval.metrics import PairsToMatch, Shortlist, rank_of_first_own, recalls, shortlist
from blip_recipe.retrieval.momentum import MomentumState, saved_temperature
from blip_recipe.retrieval.scoring import tokenize_texts
from blip_recipe.training.stop_signals import ignore_stop_signals
from blip_recipe.training.trainer import BlipTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import BlipProcessor, EvalPrediction

    from blip_recipe.recipe.parsing import DataArguments, ObjectiveArguments
    from blip_recipe.retrieval.modeling import BlipForRetrieval
    from blip_recipe.training.arguments import CaptionTrainingArguments

TEXTS_SHOWN = 10
"""Texts that a prediction lists."""

TEXTS_AT_A_TIME = 256
"""Texts that are encoded, or matched with an image, together (as in the original's `train_retrieval.py`)."""


class RetrievalTrainer(BlipTrainer):
    """Trains and scores a BLIP that matches images and texts.

    Args:
        model: `BlipForRetrieval`, or peft's wrapper of it.
        args: Trainer's arguments.
        processor: BLIP's image processor and tokenizer.
        data: The recipe's data keys (`max_caption_length`).
        objective: The recipe's keys of retrieval.
        kwargs: As `BlipTrainer`'s: `generation`, `scorer` (not used), and `CaptionDataset`s.
    """

    def __init__(
        self,
        model: BlipForRetrieval | PeftModel,
        args: CaptionTrainingArguments,
        *,
        processor: BlipProcessor,
        data: DataArguments,
        objective: ObjectiveArguments,
        **kwargs: Any,
    ) -> None:
        self.objective: ObjectiveArguments = objective
        self.momentum: MomentumState | None = None
        self._momentum_step = -1
        collator = PairCollator(processor, data.max_caption_length)
        super().__init__(model, args, processor=processor, data=data, data_collator=collator, **kwargs)

    @property
    def plain_model(self) -> BlipForRetrieval:
        """The model without what several processes, an adapter or a compiler have put around it."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _start_momentum(self) -> MomentumState:
        objective = self.objective
        momentum = MomentumState(self.plain_model, objective.queue_size, objective.momentum, self.args.seed)
        return momentum.to(self.args.device)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, once there is a momentum encoder: it begins as the model does."""
        if self.momentum is None:
            self.momentum = self._start_momentum()
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """ITC and ITM together (`train_retrieval.py` of the original), each a mean over the pairs of the step.

        Dividing by the pairs of the optimiser step makes the loss a mean over its batches and processes too; with
        gradient accumulation a pair is still compared only with its own batch and the queue.
        """
        outputs = self._run(model, inputs)
        if num_items_in_batch is None:
            num_items_in_batch = len(inputs["row"])
        elif self.args.average_tokens_across_devices:
            # The pairs of all processes, over which DistributedDataParallel takes the mean of gradients.
            num_items_in_batch = num_items_in_batch / self.accelerator.num_processes
        losses = outputs.contrastive_losses + outputs.matching_losses.mean(1)
        loss = losses.sum() / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _run(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        momentum, plain = cast("MomentumState", self.momentum), self.plain_model
        plain.clamp_temperature()
        if self._momentum_step != self.state.global_step:
            momentum.update(plain)
            self._momentum_step = self.state.global_step
        pairs = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        ids = self._train_ids[inputs["row"].cpu()].to(inputs["row"].device)
        features = momentum.train(model.training).encode(**pairs, ids=ids)
        return model(
            **pairs,
            momentum=features,
            candidates=momentum.candidates(features),
            alpha=self.alpha,
            uniform=momentum.uniform(len(inputs["row"])),
            negatives_from_all=self.objective.negative_all_rank,
        )

    @cached_property
    def _train_ids(self) -> torch.Tensor:
        return image_ids(cast("Any", self.train_dataset).rows["captions"])

    @property
    def alpha(self) -> float:
        """The share of soft targets, which grows over the first epoch (`train_retrieval.py` of the original)."""
        return self.objective.alpha * min(1.0, float(self.state.epoch or 0))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        """The pairs of all batches of a step, where Trainer counts predicted tokens."""
        pairs = [{"labels": batch["row"], "shift_labels": batch["row"]} for batch in batch_samples]
        return super()._get_num_items_in_batch(pairs, device)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer's, with momentum encoders, queue and temperature."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            cast("MomentumState", self.momentum).save(Path(output_dir), self.plain_model.temperature)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As Trainer's, with momentum encoders, queue and temperature."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            cast("MomentumState", self.momentum).load(Path(checkpoint))
            self._take_temperature(Path(checkpoint))

    def _load_best_model(self) -> None:
        """As Trainer's, with the temperature of that model."""
        super()._load_best_model()
        self._take_temperature(Path(str(self.state.best_model_checkpoint)))

    def _take_temperature(self, checkpoint: Path) -> None:
        temperature = self.plain_model.temperature
        temperature.data.copy_(saved_temperature(checkpoint))

    def prediction_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Nothing for Trainer's mean of batch means; features of images `(images, width)`; their numbers `(images,)`.

        Texts, of which an image has several, are encoded when all images are (`score_predictions`).
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            features = self.plain_model.image_features(self.plain_model.encode_images(inputs["pixel_values"]))
        return None, features.float(), inputs["row"]

    def score_predictions(self, prediction: EvalPrediction) -> dict[str, float]:
        """The `compute_metrics` hook: recalls in both directions, and ITC of the split. Fills `predictions`.

        All processes match their share of the pairs, and all come to the same result.
        """
        order = torch.as_tensor(prediction.label_ids)
        images = torch.as_tensor(prediction.predictions)[order.argsort()]
        captions: list[list[str]] = self.scored_dataset.rows["captions"]
        texts = list(chain.from_iterable(captions))
        owners = torch.arange(len(captions)).repeat_interleave(torch.tensor([len(each) for each in captions]))
        self.model.eval()
        tokens = self._tokenize(texts)
        features = self._text_features(tokens)
        texts_of_images = shortlist(images, features, self.objective.rerank_top_k)
        images_of_texts = shortlist(features, images, self.objective.rerank_top_k)
        of_images = of_texts = None
        if self.objective.rerank_top_k:
            pairs = PairsToMatch(texts_of_images, images_of_texts)
            of_images, of_texts = pairs.scores(self._match(pairs, tokens))
        else:
            texts_of_images = shortlist(images, features, TEXTS_SHOWN)
        again = (texts_of_images, of_images), (images_of_texts, of_texts)
        ids = image_ids(captions)
        text_ranks = rank_of_first_own(images, features, ids, ids[owners], *again[0])
        image_ranks = rank_of_first_own(features, images, ids[owners], ids, *again[1])
        self._note_predictions(texts, text_ranks, texts_of_images, of_images)
        temperature = self.plain_model.temperature.detach().cpu()
        scores = {"loss": float(split_loss(images, features, owners, temperature)), **recalls(text_ranks, image_ranks)}
        return scores | self._sum_for_best_model(scores)

    def _tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        if self.scored_dataset.normalize_captions:
            texts = [normalize_caption(text) for text in texts]
        length = self.data.max_caption_length
        return tokenize_texts(self.processor.tokenizer, texts, normalize=False, max_length=length)

    def _text_features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """`(texts, width)`, of which each process computes a share."""
        count = len(tokens["input_ids"])
        rows = torch.arange(self.args.process_index, count, self.args.world_size)
        found = torch.zeros(count, self.plain_model.config.image_text_hidden_size, device=self.args.device)
        for part in rows.split(TEXTS_AT_A_TIME):
            with torch.no_grad(), self.accelerator.autocast():
                found[part] = self.plain_model.text_features(**self._take(tokens, part)).float()
        return self.accelerator.reduce(found, "sum").cpu()

    def _match(self, pairs: PairsToMatch, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """ITM logits `(pairs,)`; a process encodes its share of the images, once for all texts of each."""
        found = torch.zeros(len(pairs.images), device=self.args.device)
        starts = torch.searchsorted(pairs.images, torch.arange(len(self.scored_dataset) + 1)).tolist()
        mine = Subset(
            self.scored_dataset, range(self.args.process_index, len(self.scored_dataset), self.args.world_size)
        )
        loader = DataLoader(
            mine,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=partial(ignore_stop_signals, None),
        )
        for batch in loader:
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.accelerator.autocast():
                embeds = self.plain_model.encode_images(inputs["pixel_values"])
                for image, image_embeds in zip(inputs["row"].tolist(), embeds, strict=True):
                    for places in torch.arange(starts[image], starts[image + 1]).split(TEXTS_AT_A_TIME):
                        texts = self._take(tokens, pairs.texts[places])
                        logits = self.plain_model.match_logits(image_embeds[None], **texts)
                        found[places] = logits[:, MATCHING].float()
        return self.accelerator.reduce(found, "sum").cpu()

    def _take(self, tokens: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Texts `rows` on the device, without the padding that all of them have."""
        longest = int(tokens["attention_mask"][rows].sum(1).max())
        return {name: values[rows, :longest].to(self.args.device) for name, values in tokens.items()}

    def _note_predictions(
        self, texts: list[str], text_ranks: torch.Tensor, best: Shortlist, scores: torch.Tensor | None
    ) -> None:
        shown = best.similarities if scores is None else scores
        top = shown.topk(min(TEXTS_SHOWN, shown.shape[1]), dim=1)
        candidates = best.candidates.gather(1, top.indices)
        rows = self.scored_dataset.rows.select_columns(["image_id", "captions"])
        self.predictions = [
            {
                "image_id": row["image_id"],
                "texts": [texts[number] for number in numbers],
                "text_scores": [round(score, 4) for score in text_scores],
                "rank": rank,
                "captions": row["captions"],
                "scores": {f"text_recall_{limit}": float(rank <= limit) for limit in (1, 5, 10)},
            }
            for row, numbers, text_scores, rank in zip(
                rows, candidates.tolist(), top.values.tolist(), (text_ranks + 1).tolist(), strict=True
            )
        ]
