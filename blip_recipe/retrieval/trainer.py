"""The trainer of retrieval."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Subset

from blip_recipe.card.facts import TaskWords
from blip_recipe.data.captions import MAX_WORDS, captions_id, normalize_caption
from blip_recipe.metrics.intervals import interval_scores, score_intervals
from blip_recipe.metrics.records import match_statistics
from blip_recipe.models.contrastive import MATCHING, split_loss
from blip_recipe.models.matching import tokenize_texts
from blip_recipe.retrieval.collator import PairCollator
from blip_recipe.retrieval.data import build_dataset
from blip_recipe.retrieval.metrics import PairsToMatch, Shortlist, first_match_rank, recalls, shortlist
from blip_recipe.retrieval.modeling import BlipForRetrieval
from blip_recipe.retrieval.scoring import match_row
from blip_recipe.retrieval.training_arguments import RetrievalTrainingArguments
from blip_recipe.training.momentum import MomentumTrainer
from blip_recipe.training.stop_signals import shield_workers
from blip_recipe.training.tables import join_texts
from blip_recipe.training.texts import (
    TokenizedTexts,
    describe_cut_tokens,
    describe_found,
    describe_words,
    scored_texts,
    split_texts,
    texts_of,
)
from blip_recipe.training.words import cut_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn
    from transformers import EvalPrediction, PreTrainedTokenizerBase

    from blip_recipe.metrics.statistics import Statistics
    from blip_recipe.training.tables import Cell

LISTED_TEXTS = 10
"""Number of texts in each prediction."""

TEXTS_AT_A_TIME = 256
"""Number of texts to encode, or to match with an image, at a time (as in the original's `train_retrieval.py`)."""


class RetrievalTrainer(MomentumTrainer):
    """Fine-tune a matcher, a BLIP for image-text retrieval.

    The losses are image-text contrastive learning (ITC) and image-text matching (ITM) as in the paper, with momentum
    encoders, a queue, soft targets and hard negatives. The metrics are recalls in both directions. All other arguments
    are those of [`CaptionTrainer`].

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`, *optional*): Hub id or directory of a
            `BlipForImageTextRetrieval`, a `BlipForImageTextRetrieval`, a `BlipForRetrieval`, or a `PeftModel` of one.
        args ([`RetrievalTrainingArguments`], *optional*): The training arguments.
        train_dataset, eval_dataset: Rows with a picture and captions. Training samples one caption per image and epoch.
        kwargs: Other arguments of [`CaptionTrainer`], except `compute_metrics`.

    Attributes:
        predictions: `{"image_id", "texts", "text_scores", "rank", "captions", "caption_ranks", "scores"}` of each image
            of the last evaluation.

    Raises:
        RecipeError: The model is of the wrong class, or the columns of a data set are unknown.

    Example:
        ```python
        from blip_recipe import RetrievalTrainer, RetrievalTrainingArguments

        args = RetrievalTrainingArguments("outputs/matcher", num_train_epochs=6, queue_size=4096)
        trainer = RetrievalTrainer("Salesforce/blip-itm-base-coco", args, photos["train"], photos["validation"])
        trainer.train()
        ```
    """

    task = TaskWords(
        name="retrieval",
        row="image",
        text="caption",
        output="match",
        title="BLIP matches",
        label="Image-text retrieval",
        pipeline_tag=None,
        tag="image-text-retrieval",
        command='match {model} PICTURE "TEXT" ["TEXT"...]',
        lora_layers="all linear layers of the text encoder",
        references="captions",
    )
    model_class = BlipForRetrieval
    arguments_class = RetrievalTrainingArguments
    predict_text = staticmethod(match_row)

    args: RetrievalTrainingArguments

    def build_dataset(self, dataset: Any, args: Any, *, training: bool, name: str) -> Any:
        """Convert a data set to a `CaptionDataset`, or to a `CaptionStream` for training."""
        return build_dataset(dataset, args, self.processor, training=training, name=name)

    @classmethod
    def look_at_texts(
        cls, args: Any, tokenizer: PreTrainedTokenizerBase, train: Any, scored: Any, positions: int
    ) -> list[str]:
        """Look at the captions of all splits, which are cut alike in training and evaluation."""
        texts = chain(texts_of(train, "captions"), scored_texts(scored, "captions"))
        whole = split_texts(texts, tokenizer, normalize=args.normalize_captions)
        kept, cut = cut_texts(whole, MAX_WORDS if args.normalize_captions else None)
        used = TokenizedTexts.read(kept, tokenizer)
        fault, advice = f"are cut to their first {MAX_WORDS} words", "with normalize_captions false, they are not"
        return [
            *describe_found(cut, len(whole), "caption", fault, advice),
            *describe_cut_tokens(used, args.max_caption_length, positions, "caption"),
            *describe_words(tokenizer, "captions", used),
        ]

    def build_collator(self, args: Any) -> PairCollator:
        """The collator of image-text pairs."""
        return PairCollator(self.processor, args.max_caption_length)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of ITC and ITM (`train_retrieval.py` of the original), each averaged over the pairs of the step.

        With gradient accumulation, a pair is still compared only with its own batch and the queue.
        """
        outputs = model(**self.with_momentum(inputs))
        pairs = len(inputs["row"]) if num_items_in_batch is None else self.items_per_process(num_items_in_batch)
        losses = outputs.contrastive_losses + outputs.matching_losses.mean(1)
        loss = losses.sum() / pairs
        return (loss, outputs) if return_outputs else loss

    def prediction_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return no loss, the image features `(images, width)` and the row numbers `(images,)`.

        `score_predictions` encodes the texts, as an image has several.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            features = self.plain_model.image_features(self._encode_images(inputs))
        return None, features.float(), inputs["row"]

    def _encode_images(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The embeddings of a batch of images, cached or new, `(images, patches, width)`."""
        if "image_embeds" in inputs:
            return inputs["image_embeds"]
        return self.plain_model.encode_images(inputs["pixel_values"])

    def score_predictions(self, prediction: EvalPrediction) -> dict[str, float]:
        """The `compute_metrics` hook: recalls in both directions, and the ITC loss of the split. Fills `predictions`.

        Each process matches a share of the pairs; all get the same result.
        """
        order = torch.as_tensor(prediction.label_ids)
        images = torch.as_tensor(prediction.predictions)[order.argsort()]
        captions: list[list[str]] = self.scored_dataset.rows["captions"]
        texts = list(chain.from_iterable(captions))
        owners = torch.arange(len(captions)).repeat_interleave(torch.tensor([len(each) for each in captions]))
        self.model.eval()
        tokens = self._tokenize(texts)
        features = self._text_features(tokens)
        texts_of_images = shortlist(images, features, self.args.rerank_top_k)
        images_of_texts = shortlist(features, images, self.args.rerank_top_k)
        of_images = of_texts = None
        if self.args.rerank_top_k:
            pairs = PairsToMatch(texts_of_images, images_of_texts)
            of_images, of_texts = pairs.scores(self._match(pairs, tokens))
        else:
            texts_of_images = shortlist(images, features, LISTED_TEXTS)
        reranked = (texts_of_images, of_images), (images_of_texts, of_texts)
        ids = torch.tensor(list(map(captions_id, captions)))
        text_ranks = first_match_rank(images, features, ids, ids[owners], *reranked[0])
        image_ranks = first_match_rank(features, images, ids[owners], ids, *reranked[1])
        self._record_predictions(texts, text_ranks, image_ranks, texts_of_images, of_images)
        temperature = self.plain_model.temperature.detach().cpu()
        scores = {"loss": float(split_loss(images, features, owners, temperature)), **recalls(text_ranks, image_ranks)}
        statistics = match_statistics(self.predictions)
        sure = interval_scores(score_intervals(statistics, resamples=self.resamples, seed=self.args.seed))
        return scores | sure | self.judge(statistics) | self._sum_for_best_model(scores)

    def statistics_of(self, records: Sequence[Mapping[str, Any]], found: Sequence[Statistics]) -> list[Statistics]:
        """The ranks of the records."""
        return match_statistics(records)

    def _tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        if self.scored_dataset.normalize_captions:
            texts = [normalize_caption(text) for text in texts]
        length = self.args.max_caption_length
        return tokenize_texts(self.processor.tokenizer, texts, normalize=False, max_length=length)

    def _text_features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Text features `(texts, width)`; each process computes a share."""
        count = len(tokens["input_ids"])
        rows = torch.arange(self.args.process_index, count, self.args.world_size)
        found = torch.zeros(count, self.plain_model.config.image_text_hidden_size, device=self.args.device)
        for part in rows.split(TEXTS_AT_A_TIME):
            with torch.no_grad(), self.accelerator.autocast():
                found[part] = self.plain_model.text_features(**self._select_texts(tokens, part)).float()
        return self.accelerator.reduce(found, "sum").cpu()

    def _match(self, pairs: PairsToMatch, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """ITM logits `(pairs,)`. Each process encodes a share of the images, each image once for all its texts."""
        found = torch.zeros(len(pairs.images), device=self.args.device)
        starts = torch.searchsorted(pairs.images, torch.arange(len(self.scored_dataset) + 1)).tolist()
        mine = Subset(
            self.scored_dataset, range(self.args.process_index, len(self.scored_dataset), self.args.world_size)
        )
        loader = DataLoader(
            mine,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers or 0,
        )
        for batch in shield_workers(loader):
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.accelerator.autocast():
                embeds = self._encode_images(inputs)
                for image, image_embeds in zip(inputs["row"].tolist(), embeds, strict=True):
                    for places in torch.arange(starts[image], starts[image + 1]).split(TEXTS_AT_A_TIME):
                        texts = self._select_texts(tokens, pairs.texts[places])
                        logits = self.plain_model.match_logits(image_embeds[None], **texts)
                        found[places] = logits[:, MATCHING].float()
        return self.accelerator.reduce(found, "sum").cpu()

    def _select_texts(self, tokens: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Select texts by row, trim their common padding, and move them to the device."""
        longest = int(tokens["attention_mask"][rows].sum(1).max())
        return {name: values[rows, :longest].to(self.args.device) for name, values in tokens.items()}

    def _record_predictions(
        self,
        texts: list[str],
        text_ranks: torch.Tensor,
        image_ranks: torch.Tensor,
        best: Shortlist,
        scores: torch.Tensor | None,
    ) -> None:
        shown = best.similarities if scores is None else scores
        top = shown.topk(min(LISTED_TEXTS, shown.shape[1]), dim=1)
        candidates = best.candidates.gather(1, top.indices)
        rows = self.scored_dataset.rows.select_columns(["image_id", "captions"])
        ranks_of_captions = iter((image_ranks + 1).tolist())
        self.predictions = [
            {
                "image_id": row["image_id"],
                "texts": [texts[number] for number in numbers],
                "text_scores": [round(score, 4) for score in text_scores],
                "rank": rank,
                "captions": row["captions"],
                "caption_ranks": [next(ranks_of_captions) for _ in row["captions"]],
                "scores": {f"text_recall_{limit}": float(rank <= limit) for limit in (1, 5, 10)},
            }
            for row, numbers, text_scores, rank in zip(
                rows, candidates.tolist(), top.values.tolist(), (text_ranks + 1).tolist(), strict=True
            )
        ]

    @classmethod
    def describe_settings(cls, args: Any, images: int, texts_per_image: float) -> dict[str, str]:
        """The settings of ITC and ITM."""
        return {
            "image-caption pairs per step": f"about {images:,}",
            "captions per image and step": "1",
            **cls.describe_momentum(args),
        }

    @classmethod
    def to_table_row(cls, prediction: Mapping[str, Any]) -> dict[str, Cell]:
        """The text that ranks first, its score, the rank of the first own caption, and the captions."""
        return {
            "best text": prediction["texts"][0],
            "score": prediction["text_scores"][0],
            "rank": prediction["rank"],
            "captions": join_texts(prediction["captions"]),
        }

    @classmethod
    def to_display(cls, prediction: Mapping[str, Any]) -> Mapping[str, Any]:
        """Show the best text as the caption."""
        shown = {key: prediction[key] for key in ("image_id", "scores")}
        return shown | {"caption": prediction["texts"][0], "references": prediction["captions"]}
