"""Score a captioner that the stock `Seq2SeqTrainer` trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.convert import caption_rows
from blip_recipe.data.pixels import normalize_pixels, read_resized
from blip_recipe.metrics import CaptionScorer
from blip_recipe.models.captioner import generate_captions
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.training.score_models import RowPictures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import BlipProcessor, EvalPrediction

    from blip_recipe.metrics.scores import ScoreTokenizer, SetScorer
    from blip_recipe.models.decoding import EarlyStopping


class CaptionMetrics:
    """A `compute_metrics` that captions a data set with the model in training and scores the captions.

    The stock trainer would pass the reference to `generate` as a prompt, and would score each reference as an image of
    its own. `CaptionMetrics` generates one caption per image from its pixels and the prompt, and scores it against all
    references.

    Args:
        model (`BlipForConditionalGeneration` or `PeftModel`): The model in training.
        processor (`BlipProcessor`): The processor of the model.
        dataset (`Dataset` or `torch.utils.data.Dataset`): Rows with a picture and captions, as [`CaptionTrainer`] takes
            them.
        metrics (`Sequence[str]`, defaults to `("bleu", "cider")`): Any of `bleu`, `meteor`, `rouge_l`, `cider`,
            `spice`, `exact_match`, `diversity`, and those of `scorers`.
        prompt (`str`, defaults to `""`): Text that every caption starts with.
        num_beams (`int`, defaults to 3): Number of beams; 1 is greedy search.
        max_length (`int`, defaults to 20): Maximum length in tokens, prompt included.
        min_length (`int`, defaults to 5): Minimum length in tokens, prompt included.
        repetition_penalty (`float`, defaults to 1.0): Penalty for tokens already in the caption; 1: none.
        no_repeat_ngram_size (`int`, defaults to 0): Sequences of this many tokens may occur only once in a caption; 0:
            no limit.
        length_penalty (`float`, defaults to 1.0): Above 1, beam search prefers longer captions; below, shorter ones.
        early_stopping (`bool` or `str`, defaults to `False`): End of beam search: `True` with the first complete
            captions, `"never"` when no other caption can be better, `False` when none is likely to be.
        length_penalty_counts_prompt (`bool`, defaults to `False`): Whether to divide the score of a beam by its whole
            length, as the original does, or by that without the prompt.
        score_tokenizer (`str`, defaults to `"ptb"`): Words of scored captions: those of the COCO tools (`"ptb"`), or
            characters in scripts that write no spaces between words (`"char"`).
        batch_size (`int`, defaults to 16): Pictures per batch.
        scorers (`Sequence`, defaults to none): Scorers of metrics that need a model or other files, such as a
            [`ClipScorer`].

    Attributes:
        predictions: `{"image_id", "caption", "references", "scores"}` of each image, filled by a call.

    Raises:
        RecipeError: The columns of the data set or a metric are unknown.

    Example:
        ```python
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
        from blip_recipe import CaptionCollator, CaptionMetrics

        trainer = Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments("outputs/stock", remove_unused_columns=False),
            data_collator=CaptionCollator(processor, packed=False),
            train_dataset=photos["train"],
            eval_dataset=photos["validation"],
            compute_metrics=CaptionMetrics(model, processor, photos["validation"]),
            preprocess_logits_for_metrics=CaptionMetrics.drop_logits,
        )
        ```
    """

    def __init__(
        self,
        model: Any,
        processor: BlipProcessor,
        dataset: Any,
        *,
        metrics: Sequence[str] = ("bleu", "cider"),
        prompt: str = "",
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        length_penalty_counts_prompt: bool = False,
        score_tokenizer: ScoreTokenizer = "ptb",
        batch_size: int = 16,
        scorers: Sequence[SetScorer] = (),
    ) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.rows = caption_rows(dataset, "dataset")
        self.decoding = DecodingSettings(
            *(prompt, num_beams, max_length, min_length, repetition_penalty, no_repeat_ngram_size, length_penalty),
            *(early_stopping, length_penalty_counts_prompt),
        )
        self.scorer = CaptionScorer(metrics, tokenizer=score_tokenizer, scorers=scorers)
        self.predictions: list[dict[str, Any]] = []

    def __call__(self, prediction: EvalPrediction | None = None) -> dict[str, float]:
        """Caption the data set and return the scores; the trainer's own prediction is ignored."""
        references = dict(zip(self.rows["image_id"], self.rows["captions"], strict=True))
        with self.scorer.loading():
            captions = dict(zip(references, self._caption(), strict=True))
        images = RowPictures(self.rows, references, range(len(self.rows)))
        scores = self.scorer.score(captions, references, images=images)
        self.predictions = scores.records(captions, references)
        return scores.corpus

    @staticmethod
    def drop_logits(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Use it as `preprocess_logits_for_metrics`, so that the logits of all tokens do not fill the memory."""
        return labels[:, :1]

    def _caption(self) -> list[str]:
        captions: list[str] = []
        image_processor, was_training = self.processor.image_processor, self.model.training
        self.model.eval()
        for start in range(0, len(self.rows), self.batch_size):
            numbers = range(start, min(start + self.batch_size, len(self.rows)))
            pixels = read_resized([self.rows[number]["image"] for number in numbers], image_processor)
            captions += generate_captions(
                self.model,
                self.processor.tokenizer,
                normalize_pixels(pixels.to(self.model.device), image_processor),
                prompt=self.decoding.prompt,
                **self.decoding.generate_kwargs(),
            )
        self.model.train(was_training)
        return captions
