"""CLIPScore and RefCLIPScore (Hessel et al., 2021, https://arxiv.org/abs/2104.08718), and self-retrieval by CLIP.

Pictures and texts are prepared as in `clipscore.py` of jmhessel/clipscore: the shorter side is resized to the model's
size (bicubic, with Pillow) and the centre is cut out; captions and references follow the prompt, are not cleaned, and
are cut at the model's 77 tokens.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pictures_to
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

from blip_recipe.data.images import open_image
from blip_recipe.data.listing import read_ahead
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.scores import mean_of_images
from blip_recipe.models.feature_cache import FeatureCache, PicturesInOrder, picture_key
from blip_recipe.models.loading import load_blip
from blip_recipe.models.pipeline import first_device, usable_device
from blip_recipe.models.self_retrieval import self_recalls
from blip_recipe.models.weights import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from blip_recipe.data.images import Picture
    from blip_recipe.metrics.scores import ScoredSet, Values

DEFAULT_CLIP = "openai/clip-vit-base-patch32"
"""The CLIP of the paper, ViT-B/32."""

WEIGHT = 2.5
"""`w` of the paper (section 3), which stretches cosines to about 0 to 1."""

PROMPT = "A photo depicts "
"""Text before captions and references (section 3)."""


class ClipScorer:
    """Computes `clip_score`, `ref_clip_score` and `self_retrieval` with a CLIP.

    Features of pictures and texts are kept in memory, so a split is encoded once.

    Args:
        model (`CLIPModel`): The model, in evaluation mode.
        tokenizer: Its tokenizer.
        image_processor: Its image processor, of which mean and standard deviation are used.
        batch_size (`int`, defaults to 64): Pictures that are encoded at once, and a quarter of the texts.

    Example:
        ```python
        from blip_recipe import ClipScorer, score_captions

        scores = score_captions(
            {7: "two dogs run on a beach"},
            {7: ["dogs playing by the sea"]},
            metrics=["clip_score", "ref_clip_score"],
            images={7: "photos/7.jpg"},
            scorers=[ClipScorer.load()],
        )
        ```
    """

    metrics = ("clip_score", "ref_clip_score", "self_retrieval")

    def __init__(self, model: CLIPModel, tokenizer: Any, image_processor: Any, *, batch_size: int = 64) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.image_processor, self.batch_size = tokenizer, image_processor, batch_size
        self._images, self._texts = FeatureCache(), FeatureCache()

    @classmethod
    def load(cls, name: str = DEFAULT_CLIP, *, device: Any = None, **hub: Any) -> Self:
        """Load a CLIP in float32 from a directory or a Hub id to `device` (default: the first accelerator, else CPU).

        `hub` takes `revision`, `token` and `local_files_only`. From weights in pickle files, such as those of the
        default model, torch reads only tensors (`weights_only`), so no code runs.

        Raises:
            RecipeError: The model cannot be loaded, or is no CLIP.
        """
        check_is_clip(name, **hub)
        device = usable_device(device or first_device())
        model = load_blip(name, CLIPModel, dtype=torch.float32, device=device, allow_pickle=True, **hub)  # type: ignore[arg-type]
        hub["trust_remote_code"] = False
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **hub)
            return cls(model, tokenizer, AutoImageProcessor.from_pretrained(name, **hub))
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"The tokenizer or image processor of the CLIP {name!r} cannot be loaded: {first_line(error)}"
            ) from error

    def score(self, metric: str, scored: ScoredSet) -> Values:
        """Compute one of `metrics`.

        Raises:
            BadImageError: A picture cannot be read.
        """
        images = self.image_features(PicturesInOrder(scored))
        captions = self.text_features(scored.captions)
        if metric == "self_retrieval":
            return self_recalls(images, captions)
        clip_scores = clip_score(images, captions)
        if metric == "clip_score":
            return mean_of_images(metric, clip_scores.tolist())
        flat = self.text_features(list(chain.from_iterable(scored.references)))
        known = flat.split([len(each) for each in scored.references])
        closest = torch.stack([(own @ caption).max() for own, caption in zip(known, captions, strict=True)])
        return mean_of_images(metric, harmonic_mean(clip_scores, closest.clamp(min=0)).tolist())

    def rate(self, pictures: Sequence[Picture], captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The CLIPScore of each caption of each picture."""
        texts = self.text_features(list(chain.from_iterable(captions))).split([len(own) for own in captions])
        return [
            clip_score(image, own).tolist() for image, own in zip(self.image_features(pictures), texts, strict=True)
        ]

    def image_features(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Unit-length features of pictures, `(pictures, width)` on the CPU."""

        def encode(numbers: list[int]) -> torch.Tensor:
            opened = read_ahead(self.preprocess, (pictures[number] for number in numbers), ahead=2 * self.batch_size)
            batches = iter(lambda: [pixels for _, pixels in islice(opened, self.batch_size)], [])
            return torch.cat([self._encode_images(torch.stack(batch)) for batch in batches])

        return self._images.look_up([picture_key(picture) for picture in pictures], encode)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit-length features of texts after the prompt, `(texts, width)` on the CPU."""

        def encode(numbers: list[int]) -> torch.Tensor:
            batches = torch.tensor(numbers).split(4 * self.batch_size)
            return torch.cat([self._encode_texts([texts[number] for number in batch.tolist()]) for batch in batches])

        return self._texts.look_up(texts, encode)

    def preprocess(self, picture: Picture) -> torch.Tensor:
        """The pixels `(3, height, width)` of a picture.

        Raises:
            BadImageError: The picture cannot be read.
        """
        size = self.model.config.vision_config.image_size
        resized = pictures_to.resize(open_image(picture), [size], InterpolationMode.BICUBIC)
        pixels = pictures_to.to_tensor(pictures_to.center_crop(resized, [size]))
        return pictures_to.normalize(pixels, self.image_processor.image_mean, self.image_processor.image_std)

    @torch.no_grad()
    def _encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    @torch.no_grad()
    def _encode_texts(self, texts: list[str]) -> torch.Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        prompted = [PROMPT + text for text in texts]
        tokens = self.tokenizer(prompted, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        pooled = self.model.text_model(**tokens.to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)


def clip_score(images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """CLIPScore of unit-length features: `w` times the cosine, and at least 0."""
    return WEIGHT * (images * captions).sum(-1).clamp(min=0)


def harmonic_mean(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The harmonic mean of numbers that are at least 0; 0 where both are 0, for which the authors' code has NaN."""
    return 2 * first * second / (first + second).clamp(min=torch.finfo(first.dtype).tiny)


def check_is_clip(name: str, **hub: Any) -> Any:
    """Load the configuration of a model and check that it is a CLIP.

    Raises:
        RecipeError: There is no such model, or it is of another type.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    except (OSError, ValueError) as error:
        raise RecipeError(f"The CLIP {name!r} cannot be loaded: {first_line(error)}") from error
    if config.model_type != "clip":
        raise RecipeError(
            f"clip_model_name_or_path is {name!r}, a model of type {config.model_type!r}: expected a CLIP (model type "
            f"'clip'), such as {DEFAULT_CLIP}."
        )
    return config
