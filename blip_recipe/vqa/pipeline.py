"""The `visual-question-answering` pipeline for transformers 5, registered when this module is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from transformers import BlipConfig, BlipForQuestionAnswering, Pipeline, pipelines

from blip_recipe.data.captions import normalize_question
from blip_recipe.data.images import open_image
from blip_recipe.models.decoding import decoding_arguments
from blip_recipe.models.pipeline import (
    SINGLE_IMAGE,
    BlipPipeline,
    choose_processor,
    load_blip_model,
    register_pipeline,
    split_hub_arguments,
)
from blip_recipe.models.text import decode_texts
from blip_recipe.vqa.answer_lists import RANK_BY, RANKED_ANSWERS, SMOOTHING, RankBy
from blip_recipe.vqa.collator import encode_answers, encode_questions
from blip_recipe.vqa.modeling import BlipForAnswering
from blip_recipe.vqa.ranking import Ranking
from blip_recipe.vqa.tokens import use_question_token

if TYPE_CHECKING:
    from pathlib import Path


class VisualQuestionAnsweringPipeline(BlipPipeline, Pipeline):
    """Answer questions about pictures with the decoding of the model's `recipe.json`, as in its evaluation.

    As in transformers 4, takes `image` and `question`, each of which can be a list (every question is then asked about
    every picture); or a single argument `{"image", "question"}`, or a list, generator or data set of these. A question
    gives `[{"answer": ...}]`. With `answers`, it gives the `top_k` best of them with their `loss` and `log_likelihood`.

    Args of the constructor or of a call (a call takes precedence):
        answers: Texts to choose from, instead of generated answers.
        top_k: Number of chosen answers to return (default 1).
        rank_top_k: Compare only this number of `answers` in full, those with the most probable first token (default
            128, as in the original).
        rank_by: `"smoothed_loss"`, BLIP's loss with a label smoothing of 0.1, as in the original (default), or
            `"likelihood"`.
        max_new_tokens, num_beams, ..., or a dictionary of them as `generate_kwargs`: Decoding arguments; by default
            those of the recipe.
        timeout: Seconds to wait for a URL (default 30).
        batch_size, num_workers: As in every pipeline.
    """

    task_name = "visual-question-answering"
    model_class = BlipForAnswering

    def __init__(
        self, model: Any, tokenizer: Any = None, image_processor: Any = None, processor: Any = None, **kwargs: Any
    ) -> None:
        if not isinstance(model.config, BlipConfig):
            raise ValueError(
                f"The model is of type {model.config.model_type!r}: {self.task_name} expects a BLIP. For other models, "
                "use pipeline('image-text-to-text')."
            )
        tokenizer, image_processor = choose_processor(model, tokenizer, image_processor, processor)
        use_question_token(tokenizer, model.config.text_config.bos_token_id)
        if type(model) is BlipForQuestionAnswering:
            model = BlipForAnswering.from_stock(model)
        super().__init__(model, tokenizer, image_processor, **kwargs)

    def __call__(  # type: ignore[override]
        self, image: Any = None, question: Any = None, **kwargs: Any
    ) -> Any:
        """Answer `question` about `image`."""
        if image is None:
            raise ValueError(
                f"{self.task_name} needs a picture and a question: pipe(image='photo.jpg', question='What is it?')."
            )
        if question is None:
            return super().__call__(image, **kwargs)
        one_image, one_question = isinstance(image, SINGLE_IMAGE), isinstance(question, str)
        pairs = product([question] if one_question else question, [image] if one_image else image)
        asked = [{"image": picture, "question": text} for text, picture in pairs]
        return super().__call__(asked[0] if one_image and one_question else asked, **kwargs)

    def _sanitize_parameters(
        self,
        timeout: float | None = None,
        answers: Sequence[str] | None = None,
        top_k: int | None = None,
        rank_top_k: int | None = None,
        rank_by: RankBy | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **decoding: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = self.decoding_parameters(decoding, max_new_tokens, generate_kwargs)
        if answers is not None and (isinstance(answers, str) or not answers):
            raise ValueError("`answers` is a text or empty: expected a list of texts to choose from.")
        if rank_by is not None and rank_by not in RANK_BY:
            raise ValueError(f"`rank_by` is {rank_by!r}: expected one of {', '.join(RANK_BY)}.")
        if answers is not None:
            forward["answer_ids"] = encode_answers(self.tokenizer, list(answers))
        forward |= {} if rank_top_k is None else {"rank_top_k": rank_top_k}
        forward |= {} if rank_by is None else {"rank_by": rank_by}
        postprocess = {} if answers is None else {"answers": list(answers)}
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, forward, postprocess | ({} if top_k is None else {"top_k": top_k})

    def preprocess(  # type: ignore[override]
        self, inputs: Mapping[str, Any], timeout: float | None = None
    ) -> dict[str, Any]:
        """Prepare `pixel_values` `(1, 3, height, width)`, `input_ids` and `attention_mask` `(1, tokens)`."""
        if not (isinstance(inputs, Mapping) and isinstance(inputs.get("question"), str) and "image" in inputs):
            raise ValueError("Expected a picture and a question: {'image': 'photo.jpg', 'question': 'What is it?'}.")
        pictures = [open_image(inputs["image"], timeout=timeout)]
        return {
            "pixel_values": self.image_processor(pictures, return_tensors="pt").pixel_values,
            **encode_questions(self.tokenizer, [normalize_question(inputs["question"])]),
        }

    def _forward(  # type: ignore[override]
        self,
        model_inputs: dict[str, torch.Tensor],
        answer_ids: torch.Tensor | None = None,
        rank_top_k: int = RANKED_ANSWERS,
        rank_by: RankBy = "smoothed_loss",
        **decoding: Any,
    ) -> dict[str, Any]:
        """Generate answers, or rank those of `answer_ids`.

        `pixel_values` of one row are encoded once for all questions.

        Returns:
            `token_ids` `(questions, sequences, tokens)`. With `answer_ids`: `rows` of them, best first, `losses` and
            `log_likelihoods`, each `(questions, ranked answers)`.
        """
        questions = {name: model_inputs[name] for name in ("input_ids", "attention_mask")}
        model: Any = self.model
        embeds = model.vision_model(model_inputs["pixel_values"].to(model.dtype)).last_hidden_state
        states = model.encode_questions(embeds.expand(len(questions["input_ids"]), -1, -1), **questions)
        if answer_ids is None:
            arguments = decoding_arguments(self.settings, decoding)
            token_ids = model.generate(**questions, question_states=states, **arguments)
            return {"token_ids": token_ids.view(len(states), -1, token_ids.shape[-1])}
        mask, answer_ids = questions["attention_mask"], answer_ids.to(states.device)
        return model.rank(states, mask, answer_ids, rank_top_k, SMOOTHING[rank_by])._asdict()

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, torch.Tensor], answers: list[str] | None = None, top_k: int = 1
    ) -> list[dict[str, Any]]:
        """`{"answer"}` for each generated sequence, or the `top_k` best of `answers` with loss and `log_likelihood`."""
        if answers is None:
            return [{"answer": answer} for answer in decode_texts(self.tokenizer, model_outputs["token_ids"][0])]
        best = (model_outputs[name][0, :top_k].tolist() for name in Ranking._fields)
        return [
            {"answer": answers[row], "loss": loss, "log_likelihood": likelihood}
            for row, loss, likelihood in zip(*best, strict=True)
        ]

    def ask(self, image: Any, questions: Sequence[str], top_k: int = 1) -> list[list[dict[str, Any]]]:
        """Answer several questions about one picture, which is opened and encoded once."""
        inputs = self.preprocess({"image": image, "question": ""}, **self._preprocess_params)
        inputs |= encode_questions(self.tokenizer, [normalize_question(question) for question in questions])
        outputs: Any = self.forward(inputs, **self._forward_params)
        each = ({name: values[row][None] for name, values in outputs.items()} for row in range(len(questions)))
        return [self.postprocess(output, **{**self._postprocess_params, "top_k": top_k}) for output in each]


def answer_pipeline(model: str | Path, **arguments: Any) -> VisualQuestionAnsweringPipeline:
    """Load the pipeline of a BLIP for question answering, full or adapter.

    Args:
        model (`str` or `Path`): Directory or Hub id of a model trained here, or of any `BlipForQuestionAnswering`.
        revision, token, device, dtype, quantization, allow_pickle, trust_remote_code, local_files_only: As in
            [`caption_pipeline`].
        arguments: Arguments of the pipeline: `answers`, `rank_by`, `batch_size`, `num_beams`, ...

    Returns:
        A pipeline that takes `image` and `question`, and gives `[{"answer": ...}]`.

    Raises:
        RecipeError: The model cannot be loaded, or is not a BLIP for question answering.

    Example:
        ```python
        from blip_recipe import answer_pipeline

        answerer = answer_pipeline("outputs/my_answerer")
        print(answerer(image="photo.jpg", question="How many dogs are there?")[0]["answer"])
        ```
    """
    return VisualQuestionAnsweringPipeline.load(model, **arguments)


class AutoAnswerer:
    """The model loader of this task for `transformers.pipeline`."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> Any:
        """Load the model `name` with its processor and decoding settings attached.

        `kwargs` are those of `pipeline(model_kwargs=...)`.

        Raises:
            RecipeError: The model cannot be loaded, or is not a BLIP for question answering.
        """
        hub, kwargs = split_hub_arguments(kwargs)
        task = VisualQuestionAnsweringPipeline.task_name
        return load_blip_model(name, hub, task, model_class=BlipForAnswering, **kwargs)


PIPELINE = VisualQuestionAnsweringPipeline
register_pipeline(pipelines, PIPELINE.task_name, PIPELINE, AutoAnswerer, "Salesforce/blip-vqa-base")
