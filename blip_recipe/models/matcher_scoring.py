"""Score captions by a BLIP matcher: the probability of ITM, and self-retrieval by ITC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from blip_recipe.data.listing import read_ahead
from blip_recipe.metrics.scores import mean_of_images
from blip_recipe.models.feature_cache import FeatureCache, PicturesInOrder, picture_key
from blip_recipe.models.matching import Matcher, tokenize_texts
from blip_recipe.models.self_retrieval import self_recalls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from blip_recipe.data.images import Picture
    from blip_recipe.metrics.scores import ScoredSet, Values


class MatcherScorer:
    """Computes `itm_score` and `self_retrieval` with a BLIP matcher.

    Captions are cleaned and cut as for `blip-recipe match` (lower case, 30 words, 35 tokens).

    Args:
        matcher: The matcher.
        batch_size (`int`, defaults to 16): Pictures that are encoded at once.

    Example:
        ```python
        from blip_recipe import MatcherScorer, score_captions

        scores = score_captions(
            {7: "two dogs run on a beach"},
            {7: ["dogs playing by the sea"]},
            metrics=["itm_score"],
            images={7: "photos/7.jpg"},
            scorers=[MatcherScorer.load("Salesforce/blip-itm-base-coco")],
        )
        ```
    """

    metrics = ("itm_score", "self_retrieval")

    def __init__(self, matcher: Matcher, *, batch_size: int = 16) -> None:
        self.matcher, self.batch_size = matcher, batch_size
        matcher.model.eval().requires_grad_(False)
        self._images = FeatureCache()

    @classmethod
    def load(cls, name: str, *, device: Any = None, **options: Any) -> Self:
        """Load a directory or Hub id, full or adapter, to `device` (default: the first accelerator, else the CPU).

        `options` are those of `load_finished`, such as `revision`.

        Raises:
            RecipeError: The model cannot be loaded, or is not a BLIP for retrieval.
        """
        return cls(Matcher.load(name, device=device, **options))

    def score(self, metric: str, scored: ScoredSet) -> Values:
        """Compute one of `metrics`.

        Raises:
            BadImageError: A picture cannot be read.
        """
        pictures = PicturesInOrder(scored)
        if metric == "self_retrieval":
            return self_recalls(self.image_features(pictures), self.text_features(scored.captions))
        found = self.rate(pictures, [[caption] for caption in scored.captions])
        return mean_of_images(metric, [each for own in found for each in own])

    def rate(self, pictures: Sequence[Picture], captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The probability that each caption matches its picture; all pictures have as many captions."""
        found: list[list[float]] = []
        for pixels in self._batches(pictures, range(len(pictures))):
            found += self.matcher.match(pixels.split(1), captions[len(found) : len(found) + len(pixels)])
        return found

    def image_features(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Unit-length ITC features of pictures, `(pictures, width)` on the CPU."""

        @torch.no_grad()
        def encode(numbers: list[int]) -> torch.Tensor:
            model = self.matcher.model
            batches = (pixels.to(model.device, model.dtype) for pixels in self._batches(pictures, numbers))
            return torch.cat([model.image_features(model.encode_images(pixels)) for pixels in batches])

        return self._images.look_up([picture_key(picture) for picture in pictures], encode)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit-length ITC features of texts, `(texts, width)` on the CPU."""
        model, found = self.matcher.model, []
        for start in range(0, len(texts), self.batch_size):
            tokens = tokenize_texts(self.matcher.processor.tokenizer, texts[start : start + self.batch_size])
            found.append(model.text_features(**{name: each.to(model.device) for name, each in tokens.items()}))
        return torch.cat(found).float().cpu()

    def _batches(self, pictures: Sequence[Picture], numbers: Sequence[int]) -> Iterator[torch.Tensor]:
        """The pixels `(pictures, 3, height, width)` of pictures, opened ahead."""
        opened = read_ahead(self.matcher.preprocess, (pictures[each] for each in numbers), ahead=2 * self.batch_size)
        pixels: list[torch.Tensor] = []
        for _, each in opened:
            pixels.append(each)
            if len(pixels) == self.batch_size:
                yield torch.cat(pixels)
                pixels = []
        if pixels:
            yield torch.cat(pixels)
