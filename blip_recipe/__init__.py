"""Fine-tune BLIP for image captioning from one recipe.

`import blip_recipe` makes `transformers.pipeline("image-to-text")` work on transformers 5, which dropped that task.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from types import ModuleType

    from blip_recipe.pipeline import caption_pipeline

__all__ = ["caption_pipeline"]


@wrapt.when_imported("transformers.pipelines")
def _register_image_to_text(pipelines: ModuleType) -> None:
    """Register the task once transformers is asked for pipelines: importing it here would slow down every command."""
    if "image-to-text" not in pipelines.SUPPORTED_TASKS:  # transformers 4 has it
        import_module("blip_recipe.pipeline")


def __getattr__(name: str) -> Any:
    """`blip_recipe.caption_pipeline`, imported when it is first asked for."""
    if name != "caption_pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("blip_recipe.pipeline").caption_pipeline
