"""Arguments of scores beyond words. The module does not import torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blip_recipe.errors import RecipeError

SCORE_MODELS = {"clip_model_name_or_path": "CLIP of scores", "itm_model_name_or_path": "Matcher of scores"}
"""What a model card calls the models that score captions, by key."""

CLIP_METRICS = ("clip_score", "ref_clip_score")


@dataclass
class CaptionScoreArguments:
    """Arguments of the metrics of captions that need a model or other files, beside those of `BlipArguments`."""

    _argument_group_name = "scores"

    if TYPE_CHECKING:
        metrics: list[str] = field(default_factory=list)

    clip_model_name_or_path: str = field(
        default="openai/clip-vit-base-patch32",
        metadata={"help": "Hub id or directory of the CLIP of clip_score, ref_clip_score and self_retrieval."},
    )
    itm_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or directory of the BLIP matcher of itm_score, such as Salesforce/blip-itm-base-coco."
        },
    )
    self_retrieval_by: Literal["clip", "itc"] = field(
        default="clip",
        metadata={"help": "Features of self_retrieval: those of CLIP (clip) or of the BLIP matcher (itc)."},
    )
    chair_instances: list[str] | None = field(
        default=None, metadata={"help": "COCO's instances_*.json of the scored images, for chair."}
    )
    chair_synonyms: str | None = field(
        default=None, metadata={"help": "The synonyms file of CHAIR's authors (data/synonyms.txt), for chair."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        if isinstance(self.chair_instances, str):
            raise RecipeError(
                f"chair_instances is {self.chair_instances!r}: expected a list of files, such as "
                f"[{self.chair_instances!r}]."
            )
        users = [*(name for name in ("itm_score",) if name in self.metrics), *self._itm_users()]
        if users and self.itm_model_name_or_path is None:
            raise RecipeError(
                f"{users[0]} needs a BLIP matcher, but itm_model_name_or_path is missing: expected a Hub id or a "
                "directory, such as Salesforce/blip-itm-base-coco."
            )
        needed = ("chair_instances", "chair_synonyms") if "chair" in self.metrics else ()
        if missing := next((key for key in needed if not getattr(self, key)), None):
            raise RecipeError(
                f"metrics names 'chair', but {missing} is missing: expected COCO's instances_*.json and the synonyms "
                "file of CHAIR's authors."
            )

    def _itm_users(self) -> list[str]:
        """The keys, as a message names them, that need the matcher."""
        by_itc = self.self_retrieval_by == "itc" and "self_retrieval" in self.metrics
        return ["self_retrieval_by 'itc'"] if by_itc else []

    @property
    def uses_clip(self) -> bool:
        """Whether a CLIP is needed."""
        by_clip = self.self_retrieval_by == "clip" and "self_retrieval" in self.metrics
        return by_clip or any(name in self.metrics for name in CLIP_METRICS)

    @property
    def uses_matcher(self) -> bool:
        """Whether a BLIP matcher is needed."""
        return "itm_score" in self.metrics or bool(self._itm_users())

    def score_settings(self) -> dict[str, Any]:
        """The models of scores, which cannot be compared with those of other models."""
        models = {
            "clip_model_name_or_path": self.clip_model_name_or_path if self.uses_clip else None,
            "itm_model_name_or_path": self.itm_model_name_or_path if self.uses_matcher else None,
        }
        others = super().score_settings()  # type: ignore[misc]
        # Of a local path only the name: the rest is private.
        return others | {
            name: Path(model).name if Path(model).exists() else model for name, model in models.items() if model
        }
