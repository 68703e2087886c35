"""Answer questions about pictures with an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from blip_recipe.data.captions import normalize_question
from blip_recipe.models.decoding import decoding_arguments
from blip_recipe.runtime.decoder import IMAGE, CachedDecoder, cross_states
from blip_recipe.runtime.folder import ExportedFolder
from blip_recipe.runtime.scores import log_softmax, top_k
from blip_recipe.runtime.search import generate
from blip_recipe.runtime.settings import Search

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from blip_recipe.data.images import Picture
    from blip_recipe.runtime.engines import Graph

ROWS = 64
"""Number of answers whose losses are computed at once."""


@dataclass(frozen=True)
class ExportedAnswerer:
    """A question answerer that runs without torch.

    Example:
        ```python
        from blip_recipe.runtime.answerer import ExportedAnswerer

        answerer = ExportedAnswerer.load("exported/my_answerer")
        print(answerer.ask("photo.jpg", ["How many dogs are there?"])[0][0]["answer"])
        ```

    Attributes:
        folder: The exported folder.
        image_encoder: The graph from pixels to keys and values of the question encoder's cross-attention.
        question_encoder: The graph from questions to keys and values of the decoder's cross-attention.
        text_decoder: The graph that predicts tokens.
        answers: Texts to choose from, instead of generated answers.
        rank_top_k: Number of `answers` that are compared in full, those with the most probable first token.
        label_smoothing: Label smoothing of the loss that `answers` are ranked by; 0 ranks by likelihood.
        given: Arguments of `generate`; by default those that the model was scored with.
    """

    folder: ExportedFolder
    image_encoder: Graph
    question_encoder: Graph
    text_decoder: Graph
    answers: Sequence[str] | None = None
    rank_top_k: int = 128
    label_smoothing: float = 0.1
    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        engine: str | None = None,
        threads: int | None = None,
        answers: Sequence[str] | None = None,
        rank_top_k: int = 128,
        label_smoothing: float = 0.1,
        **decoding: Any,
    ) -> Self:
        """Load an exported question answerer; the arguments are those of the class and of `ExportedCaptioner.load`.

        Raises:
            RecipeError: It is not the folder of an exported question answerer.
        """
        folder = ExportedFolder.open(path, "vqa", engine=engine, threads=threads)
        images, questions, text = folder.load("image_encoder", "question_encoder", "text_decoder")
        return cls(folder, images, questions, text, answers, rank_top_k, label_smoothing, decoding)

    @property
    def decoding(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        return decoding_arguments(self.folder.settings, self.given)

    def ask(self, image: Picture, questions: Sequence[str], top_k: int = 1) -> list[list[dict[str, Any]]]:
        """Answer several questions about one picture, which is opened and encoded once.

        Returns:
            For each question `{"answer"}`, or the `top_k` best of `answers` with their `loss` and `log_likelihood`.

        Raises:
            BadImageError: The picture cannot be read.
        """
        encoded = self.encode(self.folder.read_picture(image), [questions])
        if self.answers is None:
            decode = self.folder.texts.decode
            return [[{"answer": decode(each)} for each in found] for found in self.generate(encoded)]
        return [self._rank(encoded, row, self.answers)[:top_k] for row in range(len(questions))]

    def encode(self, pixel_values: np.ndarray, questions: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Encode questions about pictures: the inputs of the decoder that stay the same, with a row for each question.

        Args:
            pixel_values: `(images, 3, height, width)`.
            questions: The questions about each picture, of the same number for all.
        """
        flat = [normalize_question(question) for own in questions for question in own]
        ids, mask = self.folder.texts.encode_all(flat, self.folder.record["max_text_tokens"])
        shape = (len(pixel_values), -1, ids.shape[1])
        feeds = {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}
        states = cross_states(self.image_encoder.run({"pixel_values": pixel_values}), IMAGE)
        return {**cross_states(self.question_encoder.run(feeds | states)), "question_mask": mask}

    def generate(self, encoded: dict[str, np.ndarray]) -> np.ndarray:
        """Generate the token ids `(questions, answers, tokens)` after the start token."""
        tokens = self.folder.record["tokens"]
        search = Search.from_arguments(self.decoding, 1, end=tokens["end"], padding=tokens["padding"])
        start = np.full((len(encoded["question_mask"]), 1), tokens["start"], dtype=np.int64)
        return generate(self.decoder_for(encoded), start, search)

    def decoder_for(self, encoded: dict[str, np.ndarray]) -> CachedDecoder:
        return CachedDecoder(self.text_decoder, encoded, tuple(self.folder.record["heads"]))

    def _rank(self, encoded: dict[str, np.ndarray], row: int, answers: Sequence[str]) -> list[dict[str, Any]]:
        """All compared answers to the question `row`, best first, with losses and log-likelihoods."""
        own = {name: values[row : row + 1] for name, values in encoded.items()}
        if "question_mask" in own:  # the longest question of the batch may be longer
            length = int(own["question_mask"].sum())
            own = {
                name: values[:, :length] if name == "question_mask" else values[:, :, :length]
                for name, values in own.items()
            }
        tokens = self.folder.record["tokens"]
        ids, mask = self.folder.texts.pad(
            [[tokens["start"], *self.folder.texts.encode(answer, special=False), tokens["end"]] for answer in answers]
        )
        first = self.decoder_for(own).read(ids[None, :1, :1])[0, 0]
        likely = np.exp(log_softmax(first))[ids[:, 1]]
        chosen = top_k(likely[None], min(self.rank_top_k, len(answers)))[0]
        losses = [self._losses(own, ids[part], mask[part]) for part in np.split(chosen, range(ROWS, len(chosen), ROWS))]
        hard, uniform = (np.concatenate(each) for each in zip(*losses, strict=True))
        smoothed = (1 - self.label_smoothing) * hard + self.label_smoothing * uniform
        return [
            {"answer": answers[chosen[place]], "loss": float(smoothed[place]), "log_likelihood": -float(hard[place])}
            for place in np.argsort(smoothed, kind="stable")
        ]

    def _losses(self, encoded: dict[str, np.ndarray], ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """The cross entropies of answers with their tokens, and with the uniform distribution, each `(answers,)`."""
        logits = self.decoder_for(encoded).read_all(ids[None, :, :-1])[0]
        likely, counts = log_softmax(logits), mask[:, 1:]
        hard = -np.take_along_axis(likely, ids[:, 1:, None], axis=2)[..., 0]
        return (hard * counts).sum(axis=1), (-likely.mean(axis=2) * counts).sum(axis=1)
