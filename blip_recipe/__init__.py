"""Fine-tune BLIP from one recipe: to write captions, answer questions, and find pictures of texts.

`import blip_recipe` makes `transformers.pipeline("image-to-text")` and `pipeline("visual-question-answering")` work on
transformers 5, which dropped these tasks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from types import ModuleType

    from blip_recipe.captioning.pipeline import caption_pipeline
    from blip_recipe.vqa.pipeline import answer_pipeline

__all__ = ["answer_pipeline", "caption_pipeline"]

_MODULES = {"caption_pipeline": "blip_recipe.captioning.pipeline", "answer_pipeline": "blip_recipe.vqa.pipeline"}
_TASKS = {"image-to-text": "blip_recipe.captioning.pipeline", "visual-question-answering": "blip_recipe.vqa.pipeline"}


@wrapt.when_imported("transformers.pipelines")
def _register_tasks(pipelines: ModuleType) -> None:
    """Register the tasks once transformers is asked for pipelines: importing it here would slow down every command."""
    for task, module in _TASKS.items():
        if task not in pipelines.SUPPORTED_TASKS:  # transformers 4 has them
            import_module(module)


def __getattr__(name: str) -> Any:
    """One of `__all__`, imported when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
