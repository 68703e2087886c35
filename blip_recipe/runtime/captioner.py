"""Caption pictures with an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from blip_recipe.models.decoding import check_caption_decoding, decoding_arguments
from blip_recipe.runtime.decoder import CachedDecoder, cross_states
from blip_recipe.runtime.folder import ExportedFolder
from blip_recipe.runtime.scores import log_softmax, picture_uniforms
from blip_recipe.runtime.search import generate
from blip_recipe.runtime.settings import Search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from blip_recipe.data.images import Picture
    from blip_recipe.runtime.engines import Graph

Batch = TypeVar("Batch")
Result = TypeVar("Result")

SEED = 42
"""The default seed of samples."""


@dataclass(frozen=True)
class ExportedCaptioner:
    """A captioner that runs without torch.

    Example:
        ```python
        from blip_recipe.runtime.captioner import ExportedCaptioner

        captioner = ExportedCaptioner.load("exported/my_captioner")
        print(captioner.caption(["photo.jpg", "another.jpg"], num_beams=5))
        ```

    Attributes:
        folder: The exported folder.
        image_encoder: The graph from pixels to keys and values of cross-attention.
        text_decoder: The graph that predicts tokens.
        given: The prompt and arguments of `generate` of all calls; by default those that the model was scored with.
    """

    folder: ExportedFolder
    image_encoder: Graph
    text_decoder: Graph
    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, *, engine: str | None = None, threads: int | None = None, **decoding: Any) -> Self:
        """Load an exported captioner.

        Args:
            path: The folder.
            engine: `onnxruntime`, `openvino` or `openvino_bf16`; by default the first that is installed.
            threads: Number of threads; by default that of `OMP_NUM_THREADS`, else the engine's choice.
            decoding: `prompt`, `seed` and arguments of `generate`, for all calls.

        Raises:
            RecipeError: It is not the folder of an exported captioner.
        """
        folder = ExportedFolder.open(path, "captioning", engine=engine, threads=threads)
        images, text = folder.load("image_encoder", "text_decoder")
        return cls(folder, images, text, decoding)

    def caption(self, pictures: Sequence[Picture], **decoding: Any) -> list[list[str]]:
        """Caption pictures, in one batch.

        Args:
            pictures: Paths, URLs, `PIL.Image`s, arrays or encoded files.
            decoding: `prompt`, `seed` and arguments of `generate`, for this call.

        Returns:
            The captions of each picture, one unless `num_return_sequences` is given.

        Raises:
            BadImageError: A picture cannot be read.
        """
        pixels = [self.folder.read_picture(picture) for picture in pictures]
        if not pixels:
            return []
        return self._decode(*self.generate(np.concatenate(pixels), **decoding))

    def preprocess(self, picture: Picture, timeout: float | None = None) -> dict[str, np.ndarray]:
        """The `pixel_values` `(1, 3, height, width)` of a picture, as a pipeline has them."""
        return {"pixel_values": self.folder.read_picture(picture, timeout)}

    def map_batches(
        self, function: Callable[[Batch], Result], batches: Iterable[Batch], count: int | None = None
    ) -> Iterator[tuple[Batch, Result]]:
        """Yield `(batch, function(batch))` in order; the engine has threads of its own for each of the batches."""
        for batch in batches:
            yield batch, function(batch)

    def caption_pixels(
        self, pixel_values: Sequence[np.ndarray], *, with_scores: bool = False
    ) -> tuple[list[list[str]], list[list[float]] | None]:
        """Caption preprocessed pictures.

        Args:
            pixel_values: Arrays `(1, 3, height, width)`.
            with_scores: Whether to return the mean log-probability per token of each caption.

        Returns:
            The captions of each picture, and their scores or None.
        """
        pixels = np.concatenate(pixel_values)
        encoded = self.encode(pixels)
        token_ids, prompt = self.generate(pixels, encoded=encoded)
        scores = self.mean_log_probs(encoded, token_ids).tolist() if with_scores else None
        return self._decode(token_ids, prompt), scores

    def encode(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """Encode `pixel_values` `(images, 3, height, width)`."""
        return self.image_encoder.run({"pixel_values": pixel_values})

    def generate(
        self, pixel_values: np.ndarray, *, encoded: dict[str, np.ndarray] | None = None, **decoding: Any
    ) -> tuple[np.ndarray, str | None]:
        """Generate the token ids `(images, captions, tokens)` that follow the prompt.

        Args:
            pixel_values: `(images, 3, height, width)`.
            encoded: Their encoding, if it is there already.
            decoding: `prompt`, `seed` and arguments of `generate`, for this call.

        Returns:
            The token ids, and the given prompt, or None if it is the recorded one.
        """
        given = {**self.given, **decoding}
        prompt, seed = given.pop("prompt", None), given.pop("seed", SEED)
        prompt_ids = self.prompt_ids_of(prompt)
        tokens = self.folder.record["tokens"]
        search = Search.from_arguments(
            decoding_arguments(self.folder.settings, given),
            len(prompt_ids),
            end=tokens["end"],
            padding=tokens["padding"],
        )
        uniforms = None
        if search.do_sample:
            count, steps = search.num_return_sequences, search.max_length
            uniforms = np.stack([picture_uniforms(each.tobytes(), seed, count, steps) for each in pixel_values])
        decoder = self.decoder_for(self.encode(pixel_values) if encoded is None else encoded)
        rows = np.tile(np.array(prompt_ids, dtype=np.int64), (len(pixel_values), 1))
        return generate(decoder, rows, search, uniforms), prompt

    def mean_log_probs(self, encoded: dict[str, np.ndarray], token_ids: np.ndarray) -> np.ndarray:
        """The mean log-probabilities per token of captions, `(images, captions)`.

        They are the model's own: penalties, temperature and length limits do not count. The end of a caption counts as
        a token, the prompt does not.

        Args:
            encoded: The encoding of the pictures.
            token_ids: The captions `(images, captions, tokens)` after the prompt, as generated.
        """
        prompt_ids = np.array(self.prompt_ids_of(self.given.get("prompt")), dtype=np.int64)
        begin = np.broadcast_to(prompt_ids, (*token_ids.shape[:2], len(prompt_ids)))
        logits = self.decoder_for(encoded).read_all(np.concatenate([begin, token_ids[..., :-1]], axis=-1))
        likely = log_softmax(logits[:, :, len(prompt_ids) - 1 :])
        chosen = np.take_along_axis(likely, token_ids[..., None], axis=-1)[..., 0]
        is_end = token_ids == self.folder.record["tokens"]["end"]
        counts = is_end.cumsum(axis=-1) <= is_end
        return (chosen * counts).sum(axis=-1) / counts.sum(axis=-1)

    def check_decoding(self) -> None:
        """Check that the arguments of `load` fit the model, its prompt and each other.

        Raises:
            RecipeError: They do not. The message names them as options of the caption command.
        """
        given = {name: value for name, value in self.given.items() if name not in ("prompt", "seed")}
        prompt_length = len(self.prompt_ids_of(self.given.get("prompt")))
        check_caption_decoding(self.folder.settings, given, prompt_length, self.folder.record["positions"])

    def prompt_ids_of(self, prompt: str | None) -> list[int]:
        """The start token and the tokens of a prompt; None is the recorded prompt."""
        text = self.folder.settings.prompt if prompt is None else prompt
        return [self.folder.record["tokens"]["start"], *self.folder.texts.encode(text, special=False)]

    def decoder_for(self, encoded: dict[str, np.ndarray]) -> CachedDecoder:
        return CachedDecoder(self.text_decoder, cross_states(encoded), tuple(self.folder.record["heads"]))

    def _decode(self, token_ids: np.ndarray, prompt: str | None) -> list[list[str]]:
        """The texts of `token_ids`, with a given prompt before them; the recorded prompt is left out."""
        begin = [] if prompt is None else self.folder.texts.encode(prompt, special=False)
        return [[self.folder.texts.decode([*begin, *each]) for each in captions] for captions in token_ids]
