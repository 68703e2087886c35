"""The task `visual-question-answering` for transformers 5: registered when this is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import BlipConfig, BlipForQuestionAnswering, Pipeline

from blip_recipe.models.pipeline import (
    SINGLE_IMAGE,
    choose_processor,
    decoding_arguments,
    first_device,
    load_blip_model,
    load_with_its_own,
    offer_task,
    split_hub_arguments,
    usable_device,
)

if TYPE_CHECKING:
    from pathlib import Path

    from blip_recipe.models.loading import CaptionSettings

# The rest of blip_recipe is imported where it is used: this module comes along with every `transformers.pipelines`.
TASK = "visual-question-answering"
COMPARED = 128
"""Answers of a list whose whole likelihood is computed (`k_test` in the original's `configs/vqa.yaml`)."""


class VisualQuestionAnsweringPipeline(Pipeline):
    """Answers questions about pictures as the model's own evaluation did: with the decoding of its `recipe.json`.

    As in transformers 4, takes `image` and `question`, where each may be a list (every question is then asked about
    every picture), or, as one argument, `{"image", "question"}`, a list, generator or data set of these. A question
    gives `[{"answer": ...}]`; with `answers`, the `top_k` likeliest of them, each with its `log_likelihood`.

    Args to the constructor or to a call, where the call wins:
        answers: Texts to choose among, in place of free answers.
        top_k: How many of them are given (1).
        max_new_tokens, num_beams, ..., or a dictionary of them as `generate_kwargs`: decoding; what is left out is the
            recipe's.
        timeout: Seconds to wait for a URL (default 30).
        batch_size, num_workers: As in every pipeline.
    """

    # The model brings its own processor (AutoAnswerer): for an adapter, transformers would load the base model's.
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_processor: Any = False
    tokenizer: Any
    image_processor: Any

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        image_processor: Any = None,
        processor: Any = None,
        local_files_only: bool = False,  # transformers hands it on when everything is loaded
        **kwargs: Any,
    ) -> None:
        from blip_recipe.models.loading import CaptionSettings
        from blip_recipe.vqa.modeling import BlipForAnswering
        from blip_recipe.vqa.tokens import mark_questions

        if not isinstance(model.config, BlipConfig):
            raise ValueError(
                f"{TASK} answers with BLIP, but the model is of type {model.config.model_type!r}: transformers 5 has "
                "pipeline('image-text-to-text') for it."
            )
        self.settings: CaptionSettings = getattr(
            model, "caption_settings", CaptionSettings(**BlipForAnswering.decoding)
        )
        tokenizer, image_processor = choose_processor(model, tokenizer, image_processor, processor)
        mark_questions(tokenizer, model.config.text_config.bos_token_id)
        if type(model) is BlipForQuestionAnswering:
            model = BlipForAnswering.from_stock(model)
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor, **kwargs)
        self.model.eval()

    def __call__(  # type: ignore[override]
        self, image: Any = None, question: Any = None, **kwargs: Any
    ) -> Any:
        """Answers to `question` about `image`."""
        if image is None:
            raise ValueError(f"{TASK} needs a picture and a question: pipe(image='photo.jpg', question='What is it?').")
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
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **decoding: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        decoding |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        if twice := sorted(decoding.keys() & (generate_kwargs or {}).keys()):
            raise ValueError(f"{', '.join(twice)} given twice: as an argument and in `generate_kwargs`. Use one.")
        if answers is not None and (isinstance(answers, str) or not answers):
            raise ValueError("`answers` is a text or empty: expected a list of texts to choose among.")
        forward = decoding | (generate_kwargs or {})
        choice = {} if answers is None else {"answers": list(answers)}
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, forward | choice, choice | ({} if top_k is None else {"top_k": top_k})

    def preprocess(  # type: ignore[override]
        self, inputs: Mapping[str, Any], timeout: float | None = None
    ) -> dict[str, Any]:
        """`pixel_values` `(1, 3, height, width)`, `input_ids` and `attention_mask` `(1, tokens)` of one question."""
        from blip_recipe.data import open_image
        from blip_recipe.vqa.collator import encode_questions
        from blip_recipe.vqa.data import normalize_question

        if not (isinstance(inputs, Mapping) and isinstance(inputs.get("question"), str) and "image" in inputs):
            raise ValueError("Expected a picture and a question: {'image': 'photo.jpg', 'question': 'What is it?'}.")
        pictures = [open_image(inputs["image"], timeout=timeout)]
        return {
            "pixel_values": self.image_processor(pictures, return_tensors="pt").pixel_values,
            **encode_questions(self.tokenizer, [normalize_question(inputs["question"])]),
        }

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, torch.Tensor], answers: list[str] | None = None, **decoding: Any
    ) -> dict[str, Any]:
        """Free answers as `token_ids` `(questions, sequences, tokens)`; of `answers`, those compared, best first.

        Those are `rows` of `answers` and their `log_likelihoods`, each `(questions, compared answers)`.

        One picture is encoded once for all questions about it (`pixel_values` of one row).
        """
        from blip_recipe.vqa.collator import encode_answers

        asked = {name: model_inputs[name] for name in ("input_ids", "attention_mask")}
        model: Any = self.model
        embeds = model.vision_model(model_inputs["pixel_values"].to(model.dtype)).last_hidden_state
        states = model.encode_questions(embeds.expand(len(asked["input_ids"]), -1, -1), **asked)
        if answers is None:
            arguments = decoding_arguments(self.settings, decoding)
            token_ids = model.generate(**asked, question_states=states, **arguments)
            return {"token_ids": token_ids.view(len(states), -1, token_ids.shape[-1])}
        answer_ids = encode_answers(self.tokenizer, answers).to(states.device)
        rows, likelihoods = model.rank(states, asked["attention_mask"], answer_ids, top_k=COMPARED)
        return {"rows": rows, "log_likelihoods": likelihoods}

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, torch.Tensor], answers: list[str] | None = None, top_k: int = 1
    ) -> list[dict[str, Any]]:
        """`{"answer"}` for each sequence of the question; of ranked answers the `top_k` best, with `log_likelihood`."""
        if answers is None:
            from blip_recipe.captioning.modeling import decode_captions

            return [{"answer": answer} for answer in decode_captions(self.tokenizer, model_outputs["token_ids"][0])]
        rows, likelihoods = model_outputs["rows"][0].tolist(), model_outputs["log_likelihoods"][0].tolist()
        ranked = zip(rows[:top_k], likelihoods[:top_k], strict=True)
        return [{"answer": answers[row], "log_likelihood": likelihood} for row, likelihood in ranked]

    def ask(self, image: Any, questions: Sequence[str], top_k: int = 1) -> list[list[dict[str, Any]]]:
        """What a call gives for each of `questions` about one picture, which is opened and encoded once."""
        from blip_recipe.vqa.collator import encode_questions
        from blip_recipe.vqa.data import normalize_question

        inputs = self.preprocess({"image": image, "question": ""}, **self._preprocess_params)
        inputs |= encode_questions(self.tokenizer, [normalize_question(question) for question in questions])
        outputs: Any = self.forward(inputs, **self._forward_params)
        each = ({name: values[row][None] for name, values in outputs.items()} for row in range(len(questions)))
        return [self.postprocess(output, **{**self._postprocess_params, "top_k": top_k}) for output in each]


def answer_pipeline(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: Any = None,
    dtype: Any = "auto",
    quantization: Literal["recorded", "8bit", "4bit"] | None = "recorded",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    **arguments: Any,
) -> VisualQuestionAnsweringPipeline:
    """The pipeline for a BLIP that answers (a directory or Hub id; full or adapter), without touching transformers.

    Args:
        model: What was trained here with `task` `"vqa"`, or any `BlipForQuestionAnswering`.
        device, dtype, quantization, allow_pickle, trust_remote_code: As `caption_pipeline`'s.
        arguments: Those of `VisualQuestionAnsweringPipeline`: `answers`, `batch_size`, `num_beams`, ...

    Raises:
        RecipeError: It cannot be loaded, or is not a BLIP that answers.
    """
    from blip_recipe.vqa.modeling import BlipForAnswering

    device = usable_device(device if device is not None else first_device())
    answerer = load_with_its_own(
        str(model),
        revision=revision,
        token=token,
        device=device,
        dtype=dtype,
        quantization=quantization,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        local_files_only=local_files_only,
        model_class=BlipForAnswering,
    )
    return VisualQuestionAnsweringPipeline(model=answerer, task=TASK, device=device, **arguments)


class AutoAnswerer:
    """How `transformers.pipeline` loads a model for this task: as training's own evaluation does."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> Any:
        """The model `name`, with its processor and its decoding set on it.

        `kwargs` are those that `pipeline(model_kwargs=...)` hands to a model.

        Raises:
            RecipeError: It cannot be loaded, or is not a BLIP that answers.
        """
        from blip_recipe.vqa.modeling import BlipForAnswering

        hub, kwargs = split_hub_arguments(kwargs)
        return load_blip_model(name, hub, TASK, model_class=BlipForAnswering, **kwargs)


offer_task(TASK, VisualQuestionAnsweringPipeline, AutoAnswerer, "Salesforce/blip-vqa-base")
