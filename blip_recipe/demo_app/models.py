"""Load models of any kind for the page, and run them on a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blip_recipe.captioning.explanation import CaptionExplainer
from blip_recipe.captioning.pipeline import ImageToTextPipeline
from blip_recipe.errors import RecipeError
from blip_recipe.models.matching import Matcher
from blip_recipe.recipe.finished import kind_of
from blip_recipe.retrieval.explanation import MatchExplainer
from blip_recipe.vqa.explanation import AnswerExplainer
from blip_recipe.vqa.pipeline import VisualQuestionAnsweringPipeline

if TYPE_CHECKING:
    from PIL.Image import Image

    from blip_recipe.models.decoding import DecodingSettings
    from blip_recipe.models.gradcam import Explainer


@dataclass(frozen=True)
class Sampling:
    """How captions are sampled.

    Attributes:
        temperature: Divisor of the logits.
        top_p: Total probability of the tokens to sample from.
        seed: Seed of the samples, together with the picture.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 42


class LoadedModel:
    """A model of the page.

    Args:
        name: Its directory or Hub id.
        explainer: Its explainer, which holds the same weights.
    """

    def __init__(self, name: str, explainer: Explainer) -> None:
        self.name, self._explainer = name, explainer

    @property
    def settings(self) -> DecodingSettings:
        """The prompt and decoding that it was scored with."""
        return self._explainer.settings

    def explain(self, picture: str, text: str) -> Image:
        """Draw the parts of the picture that each word rests on.

        Raises:
            RecipeError: The picture cannot be read, or the text is missing or too long.
        """
        return self._explainer(picture, text.strip() or None).draw()


class Captioner(LoadedModel):
    """A captioner of the page."""

    def __init__(self, name: str, pipeline: ImageToTextPipeline) -> None:
        model: Any = pipeline.model
        super().__init__(name, CaptionExplainer(model, model.own_processor, pipeline.settings))
        self._pipeline = pipeline

    @classmethod
    def load(cls, name: str, **options: Any) -> Captioner:
        """Load a directory or Hub id."""
        return cls(name, ImageToTextPipeline.load(name, **options))

    def caption(self, picture: str, prompt: str, count: int, beams: int, sampling: Sampling | None) -> list[str]:
        """Write captions.

        Args:
            picture: The path of the picture.
            prompt: What captions begin with; empty: the prompt of the model, which captions do not repeat.
            count: The number of captions.
            beams: The number of beams, at least `count`; unused when sampling.
            sampling: How to sample; None searches with beams.

        Raises:
            RecipeError: The picture cannot be read, or the prompt is too long.
        """
        options: dict[str, Any] = {"num_return_sequences": count}
        if sampling is None:
            options |= {"num_beams": max(beams, count)}
        else:
            options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            options |= {"seed": sampling.seed}
        if prompt.strip():
            self._check_prompt(prompt)
            options["prompt"] = f"{prompt.strip()} "
        return [each["generated_text"] for each in self._pipeline(picture, **options)]

    def _check_prompt(self, prompt: str) -> None:
        tokens, longest = len(self._pipeline.tokenizer(prompt).input_ids) - 1, self.settings.max_length
        if tokens >= longest:
            raise RecipeError(
                f"The prompt has {tokens} tokens, and captions of {self.name} have at most {longest}: shorten the "
                "prompt."
            )


class Answerer(LoadedModel):
    """A question answerer of the page."""

    def __init__(self, name: str, pipeline: VisualQuestionAnsweringPipeline) -> None:
        model: Any = pipeline.model
        super().__init__(name, AnswerExplainer(model, model.own_processor, pipeline.settings))
        self._pipeline = pipeline

    @classmethod
    def load(cls, name: str, **options: Any) -> Answerer:
        """Load a directory or Hub id."""
        return cls(name, VisualQuestionAnsweringPipeline.load(name, **options))

    def answer(self, picture: str, question: str, choices: str) -> str:
        """Answer a question; with `choices`, one a line, rank them, best first, with their log-likelihood.

        Raises:
            RecipeError: The picture cannot be read, or there is no question.
        """
        if not question.strip():
            raise RecipeError("There is no question: write one.")
        answers = split_lines(choices)
        ranked = {"answers": answers, "top_k": len(answers)} if answers else {}
        found = self._pipeline(image=picture, question=question, **ranked)
        return "\n".join(
            f"{each['answer']} ({each['log_likelihood']:.2f})" if answers else each["answer"] for each in found
        )


class PictureMatcher(LoadedModel):
    """A matcher of the page."""

    def __init__(self, name: str, matcher: Matcher, explainer: MatchExplainer) -> None:
        super().__init__(name, explainer)
        self._matcher = matcher

    @classmethod
    def load(cls, name: str, **options: Any) -> PictureMatcher:
        """Load a directory or Hub id."""
        explainer = MatchExplainer.load(name, **options)
        return cls(name, Matcher(explainer.model, explainer.processor), explainer)

    def match(self, picture: str, texts: str) -> list[list[Any]]:
        """The probability that each text matches the picture (ITM), best first; texts are lines.

        Raises:
            RecipeError: The picture cannot be read, or there are no texts.
        """
        lines = split_lines(texts)
        if not lines:
            raise RecipeError("There are no texts: write one on each line.")
        (found,) = self._matcher.match([self._matcher.preprocess(picture)], [lines])
        rows = [[text, round(probability, 4)] for text, probability in zip(lines, found, strict=True)]
        return sorted(rows, key=lambda row: -row[1])


LOADERS: dict[str, Callable[..., LoadedModel]] = {
    "BlipForConditionalGeneration": Captioner.load,
    "BlipForQuestionAnswering": Answerer.load,
    "BlipForImageTextRetrieval": PictureMatcher.load,
}
"""The loader for each stock class."""


def load_model(name: str, **options: Any) -> LoadedModel:
    """Load a model of any kind; `options` are those of [`caption_pipeline`].

    Raises:
        RecipeError: The model cannot be loaded, or is of another kind.
    """
    return LOADERS[kind_of(name, options)](name, **options)


def split_lines(text: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]
