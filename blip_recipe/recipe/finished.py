"""Load finished models of any kind, to explain them or to compute features with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blip_recipe.captioning.explanation import CaptionExplainer
from blip_recipe.models.loading import find_stock_class
from blip_recipe.retrieval.explanation import MatchExplainer
from blip_recipe.retrieval.features import BlipFeatures
from blip_recipe.vqa.explanation import AnswerExplainer

if TYPE_CHECKING:
    from pathlib import Path

    from blip_recipe.models.gradcam import Explainer

EXPLAINERS: dict[str, type[Explainer]] = {
    explainer.model_class.stock_class.__name__: explainer
    for explainer in (CaptionExplainer, AnswerExplainer, MatchExplainer)
}
"""The explainer of each stock class."""


def load_explainer(model: str | Path, **arguments: Any) -> Explainer:
    """Load a model of any kind to see which parts of a picture its captions, answers or matches depend on.

    The weights are Grad-CAM of the cross-attention of one layer. The attention map is multiplied by the gradient of a
    score with respect to the map, where negative gradients count as 0, and averaged over the heads. The score is the
    log-probability of each word of a caption, the log-probability of an answer, or the ITM logit of a match.

    Args:
        model (`str` or `Path`): Directory or Hub id of a BLIP captioner, question answerer or matcher, full or adapter.
        revision, token, device, dtype, quantization, allow_pickle, trust_remote_code, local_files_only: As in
            [`caption_pipeline`].

    Returns:
        A callable that takes a picture and a text, and returns an [`Explanation`]. Its further arguments are `layer`
        and, for a question answerer, `answer` and `over` (`"question"` or `"answer"`).

    Raises:
        RecipeError: The model cannot be loaded, or is of another kind.

    Example:
        ```python
        from blip_recipe import load_explainer

        explain = load_explainer("outputs/my_captioner")
        explanation = explain("photo.jpg")  # the caption that the model generates
        print(explanation.words, explanation.maps.shape)
        explanation.save("explanation.png")
        ```
    """
    return EXPLAINERS[kind_of(str(model), arguments)].load(str(model), **arguments)


def load_features(model: str | Path, **arguments: Any) -> BlipFeatures:
    """Load a model of any kind to compute features of pictures and texts with it.

    Args:
        model (`str` or `Path`): Directory or Hub id of a BLIP, full or adapter. A matcher gives features of images and
            texts, alone and together; a captioner or question answerer gives those of images.
        revision, token, device, dtype, quantization, allow_pickle, trust_remote_code, local_files_only: As in
            [`caption_pipeline`].

    Returns:
        An object with the methods `image(images)`, `text(texts)` and `multimodal(images, texts)`.

    Raises:
        RecipeError: The model cannot be loaded, or is of another kind.

    Example:
        ```python
        from blip_recipe import load_features

        features = load_features("outputs/my_matcher")
        images, texts = features.image(["dog.jpg", "cat.jpg"]), features.text(["a dog", "a cat"])
        print(images.embeds @ texts.embeds.T)  # cosines, (images, texts)
        print(features.multimodal(["dog.jpg"], ["a dog"]).embeds.shape)  # (1, width)
        ```
    """
    return BlipFeatures.load(str(model), EXPLAINERS[kind_of(str(model), arguments)].model_class, **arguments)


def kind_of(name: str, arguments: dict[str, Any]) -> str:
    """The name of the stock class of a model, a key of `EXPLAINERS`.

    Args:
        name: Directory or Hub id.
        arguments: Arguments of a loader, of which those that find the model are used.

    Raises:
        RecipeError: There is no such model, or it is of another kind.
    """
    keys = ("revision", "token", "local_files_only", "trust_remote_code")
    return find_stock_class(name, **{key: arguments[key] for key in keys if key in arguments})
