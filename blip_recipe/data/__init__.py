"""Every source of pictures and captions becomes one dataset of `image`, `image_id` and `captions`.

| module | what lives there |
|---|---|
| `load.py` | `load_split`, `load_splits`: a split of any source as rows |
| `tables.py` | what Hugging Face's `datasets` reads: Hub ids and directories |
| `files.py` | captions files: COCO and Karpathy JSON |
| `shapes.py` | the embedded generator of drawn scenes |
| `columns.py` | which columns hold pictures and captions |
| `captions.py` | captions in any shape, and their cleaning |
| `images.py` | pictures in any mode |
| `downloads.py` | pictures behind URLs, within limits |
| `checks.py` | what is wrong with rows, before training |
| `augmentation.py` | the original's random crop, flip and RandAugment |
| `dataset.py` | `CaptionDataset`: the rows as a trainer sees them |
| `shards.py` | a split as shards, read lazily from any row on |
| `streaming.py` | `CaptionStream`: rows that are read from shards while training |

Names are imported when they are first asked for: captioning a file must not wait for `datasets`, nor reading a split
for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip_recipe.data.augmentation import augment
    from blip_recipe.data.captions import normalize_caption
    from blip_recipe.data.checks import check_splits, write_skipped_rows
    from blip_recipe.data.dataset import CaptionDataset, caption_datasets
    from blip_recipe.data.images import BadImageError, open_image
    from blip_recipe.data.load import load_split, load_splits, texts

__all__ = [
    "BadImageError",
    "CaptionDataset",
    "augment",
    "caption_datasets",
    "check_splits",
    "load_split",
    "load_splits",
    "normalize_caption",
    "open_image",
    "texts",
    "write_skipped_rows",
]

_MODULES = {
    "augment": "augmentation",
    "normalize_caption": "captions",
    "CaptionDataset": "dataset",
    "caption_datasets": "dataset",
    "BadImageError": "images",
    "check_splits": "checks",
    "open_image": "images",
    "load_split": "load",
    "load_splits": "load",
    "texts": "load",
    "write_skipped_rows": "checks",
}


def __getattr__(name: str) -> Any:
    """One of `__all__`, from the module that it lives in."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
