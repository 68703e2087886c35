"""Fine-tune BLIP for image captioning, visual question answering and image-text retrieval.

`import blip_recipe` registers `transformers.pipeline("image-to-text")` and `pipeline("visual-question-answering")` with
transformers 5, which removed these tasks.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from blip_recipe.captioning.metrics import CaptionMetrics
    from blip_recipe.captioning.modeling import BlipForCaptioning, load_captioner
    from blip_recipe.captioning.pipeline import caption_pipeline
    from blip_recipe.captioning.scst import ScstTrainer
    from blip_recipe.captioning.trainer import CaptionTrainer
    from blip_recipe.captioning.training_arguments import CaptionTrainingArguments, ScstTrainingArguments
    from blip_recipe.errors import PushError, RecipeError
    from blip_recipe.metrics.chair import Chair
    from blip_recipe.metrics.diversity import Diversity
    from blip_recipe.metrics.scorer import CaptionScorer, score_captions
    from blip_recipe.models.clip_scoring import ClipScorer
    from blip_recipe.models.heatmaps import Explanation
    from blip_recipe.models.matcher_scoring import MatcherScorer
    from blip_recipe.pretraining.modeling import BlipForPretraining
    from blip_recipe.pretraining.trainer import PretrainTrainer
    from blip_recipe.pretraining.training_arguments import PretrainTrainingArguments
    from blip_recipe.recipe.finished import load_explainer, load_features
    from blip_recipe.retrieval.features import BlipFeatures
    from blip_recipe.retrieval.modeling import BlipForRetrieval
    from blip_recipe.retrieval.trainer import RetrievalTrainer
    from blip_recipe.retrieval.training_arguments import RetrievalTrainingArguments
    from blip_recipe.training.caption_collator import CaptionCollator
    from blip_recipe.vqa.modeling import BlipForAnswering
    from blip_recipe.vqa.pipeline import answer_pipeline
    from blip_recipe.vqa.trainer import VqaTrainer
    from blip_recipe.vqa.training_arguments import VqaTrainingArguments

__version__ = "0.1.0"

_PLACES = {
    "training.caption_collator": ("CaptionCollator",),
    "captioning.metrics": ("CaptionMetrics",),
    "captioning.modeling": ("BlipForCaptioning", "load_captioner"),
    "captioning.pipeline": ("caption_pipeline",),
    "captioning.scst": ("ScstTrainer",),
    "captioning.trainer": ("CaptionTrainer",),
    "captioning.training_arguments": ("CaptionTrainingArguments", "ScstTrainingArguments"),
    "errors": ("PushError", "RecipeError"),
    "metrics.chair": ("Chair",),
    "metrics.diversity": ("Diversity",),
    "metrics.scorer": ("CaptionScorer", "score_captions"),
    "models.clip_scoring": ("ClipScorer",),
    "models.heatmaps": ("Explanation",),
    "models.matcher_scoring": ("MatcherScorer",),
    "recipe.finished": ("load_explainer", "load_features"),
    "retrieval.features": ("BlipFeatures",),
    "pretraining.modeling": ("BlipForPretraining",),
    "pretraining.trainer": ("PretrainTrainer",),
    "pretraining.training_arguments": ("PretrainTrainingArguments",),
    "retrieval.modeling": ("BlipForRetrieval",),
    "retrieval.trainer": ("RetrievalTrainer",),
    "retrieval.training_arguments": ("RetrievalTrainingArguments",),
    "vqa.modeling": ("BlipForAnswering",),
    "vqa.pipeline": ("answer_pipeline",),
    "vqa.trainer": ("VqaTrainer",),
    "vqa.training_arguments": ("VqaTrainingArguments",),
}
"""The public names of each module, which is imported on first use."""

_MODULES = {name: f"blip_recipe.{module}" for module, names in _PLACES.items() for name in names}

__all__ = [
    "BlipFeatures",
    "BlipForAnswering",
    "BlipForCaptioning",
    "BlipForPretraining",
    "BlipForRetrieval",
    "CaptionCollator",
    "CaptionMetrics",
    "CaptionScorer",
    "CaptionTrainer",
    "CaptionTrainingArguments",
    "Chair",
    "ClipScorer",
    "Diversity",
    "Explanation",
    "MatcherScorer",
    "PretrainTrainer",
    "PretrainTrainingArguments",
    "PushError",
    "RecipeError",
    "RetrievalTrainer",
    "RetrievalTrainingArguments",
    "ScstTrainer",
    "ScstTrainingArguments",
    "VqaTrainer",
    "VqaTrainingArguments",
    "answer_pipeline",
    "caption_pipeline",
    "load_captioner",
    "load_explainer",
    "load_features",
    "score_captions",
]

_TASKS = {"image-to-text": "blip_recipe.captioning.pipeline", "visual-question-answering": "blip_recipe.vqa.pipeline"}


def _register_tasks(pipelines: ModuleType) -> None:
    """Register the tasks when transformers imports its pipelines; importing them here would slow down every command."""
    for task, module in _TASKS.items():
        if task not in pipelines.SUPPORTED_TASKS:  # transformers 4 already has them
            import_module(module)


# transformers' Trainer imports peft, peft imports bitsandbytes for one of its helpers, and bitsandbytes imports torch's
# compiler. That took a fifth of the time to the first step; without quantised weights, nothing of it is used.
def _hide_bitsandbytes(_: ModuleType) -> None:
    """Hide bitsandbytes from the helpers of peft, which are the next that peft imports."""
    if not {"bitsandbytes", "peft.helpers"} & sys.modules.keys() and find_spec("bitsandbytes"):
        cast("dict[str, Any]", sys.modules)["bitsandbytes"] = None


def _show_bitsandbytes(_: ModuleType) -> bool:
    """Let bitsandbytes be imported again, and return whether it was hidden."""
    hidden = "bitsandbytes" in sys.modules and sys.modules["bitsandbytes"] is None
    if hidden:
        del sys.modules["bitsandbytes"]
    return hidden


def _import_bitsandbytes_late(helpers: ModuleType) -> None:
    """Let the helpers of peft import bitsandbytes when they use it."""
    if _show_bitsandbytes(helpers):
        cast("Any", helpers).bnb = wrapt.lazy_import("bitsandbytes")


try:
    import wrapt
except ImportError:  # an environment that runs exported models alone, without transformers and peft
    pass
else:
    wrapt.when_imported("transformers.pipelines")(_register_tasks)
    wrapt.when_imported("peft.config")(_hide_bitsandbytes)
    wrapt.when_imported("peft")(_show_bitsandbytes)
    wrapt.when_imported("peft.helpers")(_import_bitsandbytes_late)


# Loggers of libraries, and text of their messages that no user can act on. bitsandbytes asks for a package that would
# run code from the Hub (on CPUs with AVX512-BF16), and reports at each 8-bit layer what LLM.int8() always does; older
# transformers reports that BERT's tokenizer has no end-of-text token.
_NEEDLESS_WARNINGS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
    "transformers.trainer_utils": "Updated tokens: {'eos_token_id': None",
}


def _leave_out(text: str) -> Callable[[logging.LogRecord], bool]:
    """Make a filter that drops messages with `text`."""
    return lambda record: text not in record.getMessage()


for _logger, _text in _NEEDLESS_WARNINGS.items():
    logging.getLogger(_logger).addFilter(_leave_out(_text))


def __getattr__(name: str) -> Any:
    """One of `__all__`, found when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
