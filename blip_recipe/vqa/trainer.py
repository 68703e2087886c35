"""Training and scoring of a BLIP that answers: the loss over questions, answers from picture and question alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.utils.data import Sampler

from blip_recipe.captioning.modeling import decode_captions
from blip_recipe.training.trainer import BlipTrainer
from blip_recipe.vqa.collator import AnswerCollator
from blip_recipe.vqa.metrics import is_exact_match, vqa_accuracy
from blip_recipe.vqa.tokens import mark_questions

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from peft import PeftModel
    from torch import nn
    from transformers import BlipProcessor, EvalPrediction

    from blip_recipe.recipe.parsing import DataArguments
    from blip_recipe.training.arguments import CaptionTrainingArguments
    from blip_recipe.vqa.modeling import BlipForAnswering

SCORES = {"vqa_accuracy": vqa_accuracy, "exact_match": is_exact_match}
"""The scores of an answer given those of the annotators, by name."""

FOR_THE_TRAINER = ("row", "answer_weights")
"""Parts of a batch that are not the model's."""


class ImageSampler(Sampler[int]):
    """Rows in a new order each epoch, those about one image one after the other.

    Args:
        image_ids: The image of each row.
        seed: What the order of an epoch is drawn from, which resumption repeats.
    """

    def __init__(self, image_ids: Sequence[Hashable], seed: int) -> None:
        groups: dict[Hashable, list[int]] = {}
        for row, image_id in enumerate(image_ids):
            groups.setdefault(image_id, []).append(row)
        self.groups, self.rows, self.seed, self.epoch = list(groups.values()), len(image_ids), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of `epoch` from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for number in torch.randperm(len(self.groups), generator=generator).tolist():
            yield from self.groups[number]


class AnswerTrainer(BlipTrainer):
    """Trains and scores a BLIP that answers questions.

    Args:
        model: `BlipForAnswering`, or peft's wrapper of it.
        args: Trainer's arguments; `label_smoothing_factor` is applied by the model.
        processor: BLIP's image processor and tokenizer.
        data: The recipe's data keys (`max_caption_length`, of answers).
        kwargs: As `BlipTrainer`'s: `generation`, `scorer` (not used), and `QuestionDataset`s.
    """

    def __init__(
        self,
        model: BlipForAnswering | PeftModel,
        args: CaptionTrainingArguments,
        *,
        processor: BlipProcessor,
        data: DataArguments,
        **kwargs: Any,
    ) -> None:
        mark_questions(processor.tokenizer, model.config.text_config.bos_token_id)
        super().__init__(
            model,
            args,
            processor=processor,
            data=data,
            data_collator=AnswerCollator(processor, data.max_caption_length),
            **kwargs,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As Trainer's, or by `group_questions`."""
        if not self.data.group_questions:
            return super()._get_train_sampler(train_dataset)
        dataset: Any = train_dataset or self.train_dataset
        self.epoch_sampler = ImageSampler(dataset.rows["image_id"][:], self.args.seed)
        return self.epoch_sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The original's loss (`models/blip_vqa.py`): over the questions of the whole optimiser step, the mean of the
        sum over answers of what share of the annotators gave it times its tokens' cross entropies.

        Dividing by the questions of the step, and not of the batch, makes the loss and its gradient independent of
        batch size, gradient accumulation and number of processes.
        """
        outputs = self._run(model, inputs)
        if num_items_in_batch is None:
            num_items_in_batch = len(inputs["row"])
        elif self.args.average_tokens_across_devices:
            # The questions of all processes, over which DistributedDataParallel takes the mean of gradients.
            num_items_in_batch = num_items_in_batch / self.accelerator.num_processes
        loss = question_losses(outputs.token_losses, inputs["answer_weights"]).sum() / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        """The questions of all batches of a step, where Trainer counts predicted tokens."""
        questions = [{"labels": batch["row"], "shift_labels": batch["row"]} for batch in batch_samples]
        return super()._get_num_items_in_batch(questions, device)

    def _run(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """`AnsweringOutput` of the model for a batch."""
        batch = {key: value for key, value in inputs.items() if key not in FOR_THE_TRAINER}
        return model(**batch, label_smoothing=self.args.label_smoothing_factor)

    def prediction_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[None, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Answer from picture and question alone, and sum the loss of each question.

        Returns:
            Nothing for Trainer's mean of batch means; token ids `(questions, generation_max_length)`; and, each of
            shape `(questions,)`, row numbers and losses.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            outputs = self._run(model, inputs)
            token_ids = self.answer(inputs, outputs.question_states)
        return None, token_ids, (inputs["row"], question_losses(outputs.token_losses, inputs["answer_weights"]))

    def answer(self, inputs: dict[str, Any], question_states: torch.Tensor) -> torch.Tensor:
        """Token ids `(questions, generation_max_length)` of the answers, padded.

        `question_states` are those of the loss: images and questions are encoded once.
        """
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        token_ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            question_states=question_states,
            **self.generation.generate_kwargs(),
        )
        padding = self.generation.generation_max_length - token_ids.shape[1]
        return F.pad(token_ids, (0, padding), value=self.processor.tokenizer.pad_token_id)

    def score_on_this_process(self, prediction: EvalPrediction) -> dict[str, float]:
        """The mean loss of a question, and the mean scores of the answers.

        Fills `predictions` with one record a question: `image_id`, `question_id`, `question`, `answer`, `answers`,
        `scores`.
        """
        rows, losses = prediction.label_ids  # type: ignore[misc]
        columns = ["image_id", "question_id", "question", "answers"]
        asked = self.scored_dataset.rows.select_columns(columns)[rows.tolist()]
        answers = decode_captions(self.processor.tokenizer, prediction.predictions)  # type: ignore[arg-type]
        self.predictions = [
            {
                "image_id": image_id,
                "question_id": question_id,
                "question": question,
                "answer": answer,
                "answers": given,
                "scores": {name: SCORES[name](answer, given) for name in self.generation.metrics},
            }
            for image_id, question_id, question, given, answer in zip(
                *(asked[column] for column in columns), answers, strict=True
            )
        ]
        means = {
            name: sum(each["scores"][name] for each in self.predictions) / len(self.predictions)
            for name in self.generation.metrics
        }
        return {"loss": float(losses.mean(dtype="float64"))} | means


def question_losses(token_losses: torch.Tensor, answer_weights: torch.Tensor) -> torch.Tensor:
    """The loss of each question `(questions,)`.

    Args:
        token_losses: `(questions, tokens - 1)`, of the model.
        answer_weights: `(questions, tokens)`, of the collator.
    """
    return (token_losses * answer_weights[:, 1:]).sum(1)
