"""The trainer of question answering."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional as F
from torch.utils.data import Sampler

from blip_recipe.card.facts import TaskWords
from blip_recipe.data.captions import normalize_question
from blip_recipe.data.storage import write_atomically
from blip_recipe.metrics.intervals import interval_scores, score_intervals
from blip_recipe.metrics.records import answer_statistics
from blip_recipe.models.decoding import DecodingSettings
from blip_recipe.models.text import decode_texts
from blip_recipe.models.vision import encode_images
from blip_recipe.training.tables import join_texts
from blip_recipe.training.texts import (
    TokenizedTexts,
    describe_cut_tokens,
    describe_words,
    scored_texts,
    split_texts,
    texts_of,
)
from blip_recipe.training.trainer import BlipTrainer
from blip_recipe.vqa.answer_lists import ANSWER_LIST_FILE, FROM_TRAINING, SMOOTHING
from blip_recipe.vqa.checks import answers_of_training, check_answered
from blip_recipe.vqa.collator import AnswerCollator, encode_answers
from blip_recipe.vqa.data import build_dataset, is_answered
from blip_recipe.vqa.memory import answer_step
from blip_recipe.vqa.metrics import is_exact_match, vqa_accuracy
from blip_recipe.vqa.modeling import BlipForAnswering, answer_row
from blip_recipe.vqa.results import RESULT_FILE, write_results
from blip_recipe.vqa.tokens import use_question_token
from blip_recipe.vqa.training_arguments import VqaTrainingArguments

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from torch import nn
    from transformers import EvalPrediction, PreTrainedTokenizerBase

    from blip_recipe.metrics.statistics import Statistics
    from blip_recipe.training.memory import Step
    from blip_recipe.training.tables import Cell

SCORES = {"vqa_accuracy": vqa_accuracy, "exact_match": is_exact_match}
"""The metrics by name; each compares an answer with the annotators' answers."""

TRAINER_INPUTS = ("row", "answer_weights")
"""Entries of a batch that are not passed to the model."""


class ImageSampler(Sampler[int]):
    """Shuffle images each epoch, and keep the rows of an image together.

    Args:
        image_ids: The image of each row.
        seed: The order of an epoch depends only on seed and epoch, so that it is the same when resuming.
    """

    def __init__(self, image_ids: Sequence[Hashable], seed: int) -> None:
        groups: dict[Hashable, list[int]] = {}
        for row, image_id in enumerate(image_ids):
            groups.setdefault(image_id, []).append(row)
        self.groups, self.rows, self.seed, self.epoch = list(groups.values()), len(image_ids), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Use the order of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for number in torch.randperm(len(self.groups), generator=generator).tolist():
            yield from self.groups[number]


class VqaTrainer(BlipTrainer):
    """Fine-tune a BLIP for visual question answering.

    The loss is the original's: an answer is weighted by the share of annotators who gave it. All other arguments are
    those of [`CaptionTrainer`].

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`, *optional*): Hub id or directory of a
            `BlipForQuestionAnswering`, a `BlipForQuestionAnswering`, a `BlipForAnswering`, or a `PeftModel` of one.
        args ([`VqaTrainingArguments`], *optional*): The training arguments.
        train_dataset, eval_dataset: Rows with a picture, a `question`, and `answers`: a text, or a list of texts or
            structs, one per annotator.
        kwargs: Other arguments of [`CaptionTrainer`].

    Attributes:
        predictions: `{"image_id", "question_id", "question", "answer", "answers", "scores"}` of each question of the
            last evaluation.

    Raises:
        RecipeError: The model is of the wrong class, or the columns of a data set are unknown.

    Example:
        ```python
        from blip_recipe import VqaTrainer, VqaTrainingArguments

        trainer = VqaTrainer(
            "Salesforce/blip-vqa-base", VqaTrainingArguments("outputs/answers"), questions["train"], questions["test"]
        )
        trainer.train()
        ```
    """

    task = TaskWords(
        name="vqa",
        row="question",
        text="answer",
        output="answer",
        title="BLIP answers",
        label="Visual question answering",
        pipeline_tag="visual-question-answering",
        tag="visual-question-answering",
        command='answer {model} PICTURE "QUESTION"',
        lora_layers="all linear layers of text encoder and decoder",
        key="question_id",
        texts="answers",
        references="answers",
    )
    model_class = BlipForAnswering
    arguments_class = VqaTrainingArguments
    predict_text = staticmethod(answer_row)

    args: VqaTrainingArguments

    def prepare_model(self, model: Any, args: Any) -> Any:
        """Load or convert the model, and make the tokenizer start questions with `[ENC]`."""
        model = super().prepare_model(model, args)
        use_question_token(self.processor.tokenizer, model.config.text_config.bos_token_id)
        return model

    def prepare_task(self) -> None:
        """Tokenise the answers to rank, once."""
        answers = self.args.answers
        self.answer_ids = None if answers is None else encode_answers(self.processor.tokenizer, answers)

    def build_dataset(self, dataset: Any, args: Any, *, training: bool, name: str) -> Any:
        """Convert a data set to a `QuestionDataset`."""
        return build_dataset(dataset, args, self.processor, training=training, name=name)

    @classmethod
    def look_at_texts(
        cls, args: Any, tokenizer: PreTrainedTokenizerBase, train: Any, scored: Any, positions: int
    ) -> list[str]:
        """Look at the words of questions and answers, and at the lengths of training answers.

        With `answer_list` "train", `args.answers` become the frequent answers of the training questions.

        Raises:
            RecipeError: There are no answers to train on, to choose a checkpoint by, or to make a list of.
        """
        check_answered(args, train, scored)
        if args.answer_list == FROM_TRAINING and args.answers is None:
            args.answers = answers_of_training(args, train)
        asked = chain(texts_of(train, "question"), scored_texts(scored, "question"))
        cleaned = map(normalize_question, asked) if args.normalize_captions else asked
        questions = TokenizedTexts.read(split_texts(cleaned, tokenizer), tokenizer)
        answers = TokenizedTexts.read(split_texts(texts_of(train, "answers"), tokenizer), tokenizer)
        return [
            *describe_cut_tokens(answers, args.max_caption_length, positions, "training answer"),
            *describe_words(tokenizer, "questions and answers", questions, answers),
        ]

    def build_collator(self, args: Any) -> AnswerCollator:
        """The collator of questions and answers."""
        return AnswerCollator(self.processor, args.max_caption_length)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Like Trainer's; with `group_questions`, an `ImageSampler`."""
        if not self.args.group_questions:
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
        """The original's loss (`models/blip_vqa.py`): the mean over the questions of the optimiser step.

        The loss of a question is the sum over its answers of the answer's weight times its tokens' cross entropies.
        Dividing by the questions of the step instead of the batch makes loss and gradient independent of batch size,
        gradient accumulation and number of processes.
        """
        outputs = self._run(model, inputs)
        questions = len(inputs["row"]) if num_items_in_batch is None else self.items_per_process(num_items_in_batch)
        loss = question_losses(outputs.token_losses, inputs["answer_weights"]).sum() / questions
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        """Count the questions of a step instead of the predicted tokens."""
        questions = [{"labels": batch["row"], "shift_labels": batch["row"]} for batch in batch_samples]
        return super()._get_num_items_in_batch(questions, device)

    def _run(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Run the model on a batch."""
        batch = {key: value for key, value in inputs.items() if key not in TRAINER_INPUTS}
        return model(**batch, label_smoothing=self.args.label_smoothing_factor)

    def prediction_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[None, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Generate answers from picture and question, or rank a list, and compute the loss of each question.

        Returns:
            No loss, as Trainer would average batch means; token ids `(questions, tokens)`; and row numbers and losses,
            each `(questions,)`. Losses of questions without answers are NaN. With a list of answers, also the number of
            the best one, `(questions,)`.
        """
        inputs = self._prepare_inputs(inputs)
        rows = inputs["row"]
        with torch.no_grad(), self.accelerator.autocast():
            if "labels" in inputs:
                outputs = self._run(model, inputs)
                states = outputs.question_states
                losses = question_losses(outputs.token_losses, inputs["answer_weights"])
            else:
                states, losses = self._encode(inputs), torch.full(rows.shape, torch.nan, device=rows.device)
            if self.answer_ids is None:
                return None, self.answer(inputs, states), (rows, losses)
            best = self.rank(inputs, states)
        return None, self.answer_ids.to(best.device)[best], (rows, losses, best)

    def _encode(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Encode questions without answers."""
        embeds = encode_images(self.plain_model.vision_model, inputs["pixel_values"])
        questions = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_index")}
        return self.plain_model.encode_questions(embeds, **questions)

    def rank(self, inputs: dict[str, Any], question_states: torch.Tensor) -> torch.Tensor:
        """The number of the best answer of the list to each question, `(questions,)`."""
        answer_ids = cast("torch.Tensor", self.answer_ids).to(question_states.device)
        how = self.args.rank_top_k, SMOOTHING[self.args.rank_by]
        return self.plain_model.rank(question_states, inputs["attention_mask"], answer_ids, *how).rows[:, 0]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Like the base trainer's; the answers to questions that cannot be scored go to `vqa_result.json`."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.is_world_process_zero() and not is_answered(self.scored_dataset.rows):
            write_results(self.output_dir / RESULT_FILE, self.predictions)
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Like the base trainer's, with the list of answers that are ranked."""
        super().save_model(output_dir, _internal_call)
        file = Path(output_dir or self.output_dir) / ANSWER_LIST_FILE
        if self.args.should_save and not _internal_call:
            if self.args.answers is None:
                file.unlink(missing_ok=True)
            else:
                write_atomically(file, json.dumps(self.args.answers, ensure_ascii=False).encode())

    def answer(self, inputs: dict[str, Any], question_states: torch.Tensor) -> torch.Tensor:
        """Generate answers as padded token ids `(questions, generation_max_length)`.

        `question_states` are reused from the loss, so images and questions are encoded once.
        """
        generate_kwargs = self.generate_kwargs()
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        token_ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            question_states=question_states,
            **generate_kwargs,
        )
        padding = max(0, self.max_generated_tokens(generate_kwargs) - token_ids.shape[1])
        return F.pad(token_ids, (0, padding), value=self.processor.tokenizer.pad_token_id)

    def score_on_this_process(self, prediction: EvalPrediction) -> dict[str, float]:
        """The mean loss per question, and the mean scores of the answers; nothing without the annotators' answers.

        Fills `predictions` with one record per question: `image_id`, `question_id`, `question`, `answer`, `answers`,
        `scores`.
        """
        rows, losses, *best = prediction.label_ids  # type: ignore[misc]
        columns = ["image_id", "question_id", "question", "answers"]
        questions = self.scored_dataset.rows.select_columns(columns)[rows.tolist()]
        if best:
            answers = [cast("list[str]", self.args.answers)[number] for number in best[0].tolist()]
        else:
            answers = decode_texts(self.processor.tokenizer, prediction.predictions)  # type: ignore[arg-type]
        self.predictions = [
            {
                "image_id": image_id,
                "question_id": question_id,
                "question": question,
                "answer": answer,
                "answers": given or [],
                "scores": {name: SCORES[name](answer, given) for name in self.args.metrics} if given else {},
            }
            for image_id, question_id, question, given, answer in zip(
                *(questions[column] for column in columns), answers, strict=True
            )
        ]
        if not is_answered(self.scored_dataset.rows):
            return {}
        means = {
            name: sum(each["scores"][name] for each in self.predictions) / len(self.predictions)
            for name in self.args.metrics
        }
        statistics = answer_statistics(self.predictions)
        sure = interval_scores(score_intervals(statistics, resamples=self.resamples, seed=self.args.seed))
        return {"loss": float(losses.mean(dtype="float64"))} | means | sure | self.judge(statistics)

    def statistics_of(self, records: Sequence[Mapping[str, Any]], found: Sequence[Statistics]) -> list[Statistics]:
        """The scores of the records."""
        return answer_statistics(records)

    def reference_ids(self) -> list[list[int]]:
        """Token ids of the first answer to each scored question."""
        return self.processor.tokenizer([each["answers"][0] for each in self.predictions]).input_ids

    @classmethod
    def traced_step(cls, args: Any, rows: Any, tokenizer: PreTrainedTokenizerBase) -> Step:
        """The step with the longest questions, and the longest answers to one question."""
        return answer_step(args, rows.select_columns(["image_id", "question", "answers"]), tokenizer)

    @classmethod
    def decoding(cls, args: Any) -> DecodingSettings:
        """The decoding of generated answers."""
        return DecodingSettings.from_kwargs(args.generate_kwargs())

    @classmethod
    def describe_settings(cls, args: Any, images: int, texts_per_image: float) -> dict[str, str]:
        """The number of question-answer pairs per step, the label smoothing, and how answers of a list are ranked."""
        settings = {
            "question-answer pairs per step": f"about {images * texts_per_image:,.0f}",
            "label smoothing": f"{args.label_smoothing_factor:g}",
        }
        if args.answers is None:
            return settings
        how = f"ranked by {args.rank_by.replace('_', ' ')}, {args.rank_top_k:,} of {len(args.answers):,} in full"
        return settings | {"scored answers": how}

    @classmethod
    def to_table_row(cls, prediction: Mapping[str, Any]) -> dict[str, Cell]:
        """Question, answer, the annotators' answers, and scores."""
        texts = {name: prediction[name] for name in ("question", "answer")}
        return texts | {"answers": join_texts(prediction["answers"])} | prediction["scores"]

    @classmethod
    def to_display(cls, prediction: Mapping[str, Any]) -> Mapping[str, Any]:
        """Show question and answer as the caption, and the annotators' answers as references.

        `agreement` says of each answer how many annotators gave it, and its VQA accuracy.
        """
        given = prediction["answers"]
        counts = {answer: given.count(answer) for answer in given}
        references = sorted(counts, key=lambda answer: -counts[answer])
        return {
            "question_id": prediction["question_id"],
            "image_id": prediction["image_id"],
            "caption": f"{prediction['question']} {prediction['answer']}",
            "references": references,
            "agreement": [
                f"{counts[answer]} of {len(given)}, accuracy {vqa_accuracy(answer, given):.2f}" for answer in references
            ],
            "scores": prediction["scores"],
        }


def question_losses(token_losses: torch.Tensor, answer_weights: torch.Tensor) -> torch.Tensor:
    """The loss of each question `(questions,)`.

    Args:
        token_losses: `(questions, tokens - 1)`, from the model.
        answer_weights: `(questions, tokens)`, from the collator.
    """
    return (token_losses * answer_weights[:, 1:]).sum(1)
