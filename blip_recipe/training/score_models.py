"""Load the models that score captions by their pictures, and give scorers the pictures of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from transformers import BlipForImageTextRetrieval, CLIPModel

from blip_recipe.data.dataset import CaptionDataset
from blip_recipe.errors import RecipeError
from blip_recipe.metrics.chair import Chair
from blip_recipe.metrics.diversity import Diversity
from blip_recipe.models.clip_scoring import ClipScorer, check_is_clip
from blip_recipe.models.loading import check_is_blip, read_repository_json
from blip_recipe.models.matcher_scoring import MatcherScorer
from blip_recipe.models.matching import MatchingModel
from blip_recipe.training.memory import weight_bytes

if TYPE_CHECKING:
    from blip_recipe.data.convert import Rows
    from blip_recipe.data.images import Picture
    from blip_recipe.metrics.scores import ImageId, SetScorer


class RowPictures(Mapping["ImageId", "Picture"]):
    """The pictures of rows by image id, each read from the rows when it is asked for.

    Args:
        rows: Rows with a column `image`.
        image_ids: The image id of each of `numbers`.
        numbers: Row numbers.
    """

    def __init__(self, rows: Rows, image_ids: Iterable[ImageId], numbers: Iterable[int]) -> None:
        self._images = rows.select_columns(["image"])
        self._numbers = dict(zip(image_ids, numbers, strict=True))

    def __getitem__(self, image_id: ImageId) -> Picture:
        return self._images[self._numbers[image_id]]["image"]

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


@dataclass(frozen=True)
class ScoreModels:
    """The models that the arguments of a caption trainer name, frozen, or None where they are not needed."""

    clip: ClipScorer | None
    matcher: MatcherScorer | None

    @classmethod
    def load(cls, args: Any, device: Any) -> ScoreModels:
        """Load the models to `device`.

        Raises:
            RecipeError: A model cannot be loaded, or is of another kind.
        """
        clip = ClipScorer.load(args.clip_model_name_or_path, device=device) if args.uses_clip else None
        return cls(clip, load_matcher(args.itm_model_name_or_path, device) if args.uses_matcher else None)


def load_matcher(name: str, device: Any) -> MatcherScorer:
    """Load the matcher of `itm_model_name_or_path`.

    Raises:
        RecipeError: It cannot be loaded, or is no matcher.
    """
    try:
        return MatcherScorer.load(name, device=device)
    except RecipeError as error:
        raise _name_key(error) from error


def build_scorers(args: Any, models: ScoreModels, training_captions: Iterable[str] | None = None) -> list[SetScorer]:
    """The scorers that the metrics of `args` need beside words.

    Raises:
        RecipeError: A file of `chair` cannot be read.
    """
    chair = [_read_chair(*_chair_files(args))] if "chair" in args.metrics else []
    by_preference = [models.clip, models.matcher]
    if args.self_retrieval_by == "itc":
        by_preference.reverse()
    return [*(each for each in by_preference if each is not None), *chair, Diversity(training_captions)]


@lru_cache(maxsize=1)  # the files of COCO are large, and are read for the check and for the scores
def _read_chair(instances: tuple[str, ...], synonyms: str) -> Chair:
    return Chair.read(instances, synonyms)


def _chair_files(args: Any) -> tuple[tuple[str, ...], str]:
    return tuple(args.chair_instances), args.chair_synonyms


def check_score_models(args: Any) -> None:
    """Check the models and files of scores before anything is written; weights are not read.

    Raises:
        RecipeError: One cannot be read, or is of another kind.
    """
    if getattr(args, "uses_clip", False):
        check_is_clip(args.clip_model_name_or_path)
    if getattr(args, "uses_matcher", False):
        _matcher_config(args.itm_model_name_or_path)
    if "chair" in args.metrics:
        _read_chair(*_chair_files(args))


def training_captions_of(dataset: Any) -> Iterable[str] | None:
    """All captions of a training data set, or None without one and for a stream."""
    return chain.from_iterable(_captions(dataset)) if isinstance(dataset, CaptionDataset) else None


def _captions(dataset: CaptionDataset) -> Iterator[Sequence[str]]:
    yield from dataset.rows["captions"]


def score_model_bytes(args: Any) -> int:
    """The bytes of the weights of the models that `ScoreModels.load` loads, at 4 bytes for each.

    Raises:
        RecipeError: There is no such model, or it is of another kind.
    """
    total = 0
    with torch.device("meta"):
        if args.uses_clip:
            total += weight_bytes(CLIPModel(check_is_clip(args.clip_model_name_or_path)))
        if args.uses_matcher:
            total += weight_bytes(BlipForImageTextRetrieval(_matcher_config(args.itm_model_name_or_path)))
    return total


def _matcher_config(name: str) -> Any:
    """The configuration of a matcher, or of the base of an adapter."""
    try:
        adapter = read_repository_json(name, "adapter_config.json")
        revision = {"revision": adapter.get("revision")} if adapter else {}
        return check_is_blip(adapter.get("base_model_name_or_path", name), MatchingModel, **revision)
    except RecipeError as error:
        raise _name_key(error) from error


def _name_key(error: RecipeError) -> RecipeError:
    """An error of loading a model under the key that names the matcher."""
    text = str(error)
    return RecipeError(f"itm_{text}" if text.startswith("model_name_or_path") else text)
