"""Score a model in training by the captions that it generates."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blip_recipe.data.rows import GROUP, PROMPT
from blip_recipe.errors import RecipeError
from blip_recipe.metrics import CaptionScorer
from blip_recipe.metrics.intervals import interval_scores
from blip_recipe.metrics.records import caption_statistics
from blip_recipe.metrics.statistics import is_mean_of_images
from blip_recipe.models.captioner import caption_row, generate_token_ids
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.models.text import IGNORED, decode_texts
from blip_recipe.training.caption_collator import CaptionCollator
from blip_recipe.training.caption_texts import PromptedTexts, look_at_captions
from blip_recipe.training.score_models import (
    RowPictures,
    ScoreModels,
    build_scorers,
    score_model_bytes,
    training_captions_of,
)
from blip_recipe.training.trainer import BlipTrainer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import EvalPrediction, PreTrainedTokenizerBase

    from blip_recipe.metrics.statistics import Statistics

TRAINER_INPUTS = ("row", "captions_id")
"""Entries of a batch that are not passed to the model."""


def count_predicted_tokens(labels: torch.Tensor) -> torch.Tensor:
    """The number of predicted tokens in each row of `labels` `(images, tokens)`."""
    return (labels[:, 1:] != IGNORED).sum(1)


class CaptionScoringTrainer(BlipTrainer):
    """The base class of trainers whose model is scored by its captions.

    Its model is a `CaptioningModel`, and its arguments have those of `CaptionTextArguments`.
    """

    predict_text = staticmethod(caption_row)

    args: Any

    def prepare_task(self) -> None:
        """Prepare the scorer."""
        super().prepare_task()
        if isinstance(self.data_collator, CaptionCollator):
            if not self.data_collator.packed:
                raise RecipeError(
                    "data_collator is a CaptionCollator with packed=False, which is for the stock Seq2SeqTrainer: "
                    "expected packed=True, or no data_collator."
                )
            self.data_collator.bos_token_id = self.plain_model.config.text_config.bos_token_id
        self.score_models = ScoreModels.load(self.args, self.args.device)
        scorers = build_scorers(self.args, self.score_models, training_captions_of(self.train_dataset))
        self.scorer = CaptionScorer(self.args.metrics, tokenizer=self.args.score_tokenizer, scorers=scorers)
        # Download what the metrics need before the training.
        self.scorer.prepare()
        weakref.finalize(self, self.scorer.close)

    @classmethod
    def look_at_texts(
        cls, args: Any, tokenizer: PreTrainedTokenizerBase, train: Any, scored: Any, positions: int
    ) -> list[str]:
        """Look at the captions, and fit the lengths of training and generated captions to them."""
        captions = PromptedTexts.read([train], args.prompt)
        references = PromptedTexts.read(scored.values() if isinstance(scored, dict) else [scored], args.prompt)
        return look_at_captions(args, tokenizer, captions, references, positions)

    @classmethod
    def bytes_beside(cls, model: Any, args: Any) -> int:
        """The bytes of the models that score captions, and of others."""
        return super().bytes_beside(model, args) + score_model_bytes(args)

    def build_collator(self, args: Any) -> CaptionCollator:
        """A packed collator; the data set cleans captions."""
        return CaptionCollator(self.processor, args.prompt, args.max_caption_length, normalize_captions=False)

    def _run(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Run the model on a batch, without what only trainers read."""
        batch = {key: value for key, value in inputs.items() if key not in TRAINER_INPUTS}
        return model(**batch, label_smoothing=self.args.label_smoothing_factor)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Load METEOR on the process that scores, while the model generates."""
        with self.scorer.loading(self.current_metrics() if self.is_world_process_zero() else ()):
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[None, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Generate captions from pixels and prompt, and sum the loss of each image.

        Returns:
            No loss, as Trainer would average batch means; token ids `(images, generation_max_length)`; and row
            numbers, sums of token losses and numbers of predicted tokens, each `(images,)`.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            outputs = self._run(model, inputs)
            token_ids = self.generate(outputs.image_embeds, self.prompts_of(inputs["row"]))
        return None, token_ids, (inputs["row"], outputs.token_losses.sum(1), count_predicted_tokens(inputs["labels"]))

    def prompts_of(self, rows: torch.Tensor) -> list[str]:
        """The prompt of each row `(images,)` of the scored split: its own, if it has one, or that of the arguments."""
        if not self.scored_dataset.has_prompts:
            return [self.args.prompt] * len(rows)
        return self.scored_dataset.rows.select_columns([PROMPT])[rows.tolist()][PROMPT]

    def generate(self, image_embeds: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Generate token ids `(images, maximum length)` without the prompts, with padding behind.

        `image_embeds` `(images, patches, width)` are reused from the loss, so an image is encoded once. Images with the
        same prompt are captioned together.
        """
        generate_kwargs = self.generate_kwargs()
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        tokenizer = self.processor.tokenizer
        size = len(prompts), self.max_generated_tokens(generate_kwargs)
        token_ids = torch.full(size, tokenizer.pad_token_id, device=image_embeds.device)
        for prompt in dict.fromkeys(prompts):
            images = [image for image, each in enumerate(prompts) if each == prompt]
            found = generate_token_ids(model, tokenizer, image_embeds[images], prompt, **generate_kwargs)
            token_ids[images, : found.shape[1]] = found
        return token_ids

    def score_on_this_process(self, prediction: EvalPrediction) -> dict[str, float]:
        """The mean token loss, and the scores of generated captions against all references.

        Fills `predictions` with one record per image: `image_id`, `caption`, `references`, `scores`, and its `prompt`
        and `group` if it has them.
        """
        rows, loss_sums, counts = prediction.label_ids  # type: ignore[misc]
        texts = [name for name in (PROMPT, GROUP) if name in self.scored_dataset.rows.column_names]
        scored = self.scored_dataset.rows.select_columns(["image_id", "captions", *texts])[rows.tolist()]
        captions = decode_texts(self.processor.tokenizer, prediction.predictions)  # type: ignore[arg-type]
        references = dict(zip(scored["image_id"], scored["captions"], strict=True))
        predictions = dict(zip(scored["image_id"], captions, strict=True))
        groups = dict(zip(scored["image_id"], scored.get(GROUP, ()), strict=False))
        images = RowPictures(self.scored_dataset.rows, scored["image_id"], rows.tolist())
        scores = self.scorer.score(
            *(predictions, references, self.current_metrics(), groups, images),
            resamples=self.resamples,
            seed=self.args.seed,
        )
        self.predictions = scores.records(predictions, references)
        for number, record in enumerate(self.predictions):
            record |= {name: scored[name][number] for name in texts}
        sure = interval_scores(scores.intervals) | self.judge(scores.statistics)
        return {"loss": float(loss_sums.sum(dtype="float64") / counts.sum())} | scores.corpus | sure

    def statistics_of(self, records: Sequence[Mapping[str, Any]], found: Sequence[Statistics]) -> list[Statistics]:
        """Means come from the records; other scores are computed again."""
        means = [name for each in found if is_mean_of_images(each) for name in each.names]
        names = {name for each in found for name in each.names} - set(means)
        again = [metric for metric in self.current_metrics() if names & set(self.args.scores([metric]))]
        return caption_statistics(records, self.scorer, again, means)

    def reference_ids(self) -> list[list[int]]:
        """Token ids of the first reference of each scored image."""
        references = [each["references"][0] for each in self.predictions]
        return self.processor.tokenizer(references).input_ids

    @classmethod
    def decoding(cls, args: Any) -> DecodingSettings:
        """The prompt and decoding of generated captions."""
        return DecodingSettings.from_kwargs(args.generate_kwargs(), args.prompt)
