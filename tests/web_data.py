"""A small web data set in every shape that CapFilt reads, and tiny models that write and judge."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from captioners import CAPTIONS, GAIN, save_captioner
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from transformers import BlipImageProcessor, BlipProcessor

from blip_recipe.models.processors import save_processor
from blip_recipe.models.tiny import build_tokenizer, tiny_config
from blip_recipe.retrieval.modeling import BlipForRetrieval

TEXTS = ("IMG_0001.jpg", "a small dog & two green circles!", "Buy now: red square, blue ground", "three yellow cats")

Row = tuple[bytes, list[str]]
"""A picture's file and the texts that were found with it."""


def save_filter(directory: Path, *, seed: int = 1, image_size: int = 96) -> Path:
    """An untrained matcher, yet with another probability for another pair."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(CAPTIONS)
    model = BlipForRetrieval(tiny_config(tokenizer, image_size))
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(GAIN if weights.ndim > 1 else 1.0)
        # Matching and not matching are equally likely of the first pictures.
        model.itm_head.bias.zero_()
        model.itm_head.weight[1] = -model.itm_head.weight[0]
    model.save_pretrained(directory)
    save_processor(
        BlipProcessor(BlipImageProcessor(size={"height": image_size, "width": image_size}), tokenizer), directory
    )
    return directory


def save_models(folder: Path) -> dict[str, str]:
    """The keys of a recipe that name a captioner and a filter, which lie in `folder`."""
    return {
        "captioner_name_or_path": str(save_captioner(folder / "captioner")),
        "filter_name_or_path": str(save_filter(folder / "filter")),
    }


def web_rows(count: int) -> list[Row]:
    """Different JPEG pictures, each with a text or two."""
    return [
        (jpeg(number), [TEXTS[number % 4], f"{TEXTS[number % 3]} no {number}"][: 1 + number % 2])
        for number in range(count)
    ]


def jpeg(number: int) -> bytes:
    """A drawn picture of its own for each number."""
    picture = Image.new("RGB", (60 + number % 7, 48), (37 * number % 256, 91 * number % 256, 151 * number % 256))
    corner = 8 + 5 * number % 40
    ImageDraw.Draw(picture).ellipse((4, 4, corner, 44), fill=(211 * number % 256, 255 - number % 256, 99))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def in_shards(rows: Sequence[Row], size: int) -> Iterable[Sequence[Row]]:
    """`rows` in parts of `size`."""
    return (rows[first : first + size] for first in range(0, len(rows), size))


def write_tars(folder: Path, rows: Sequence[Row], size: int) -> Path:
    """Webdataset shards of `size` pictures each, texts a line each."""
    folder.mkdir(parents=True)
    for shard, part in enumerate(in_shards(rows, size)):
        with tarfile.open(folder / f"web-{shard:03}.tar", "w") as tar:
            for number, (content, texts) in enumerate(part):
                for extension, member in (("jpg", content), ("txt", "\n".join(texts).encode())):
                    entry = tarfile.TarInfo(f"{number:05}.{extension}")
                    entry.size = len(member)
                    tar.addfile(entry, io.BytesIO(member))
    return folder


def write_parquet(folder: Path, rows: Sequence[Row], size: int) -> Path:
    """Parquet shards of `size` pictures each."""
    folder.mkdir(parents=True)
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    for shard, part in enumerate(in_shards(rows, size)):
        records = [{"image": {"bytes": content, "path": None}, "captions": texts} for content, texts in part]
        Dataset.from_list(records, features=features).to_parquet(folder / f"web-{shard:03}.parquet")
    return folder


def write_folder(folder: Path, rows: Sequence[Row], size: int = 0) -> Path:
    """An imagefolder."""
    folder.mkdir(parents=True)
    lines = []
    for number, (content, texts) in enumerate(rows):
        (folder / f"{number:05}.jpg").write_bytes(content)
        lines.append(json.dumps({"file_name": f"{number:05}.jpg", "captions": texts}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


SHAPES = {"tars": write_tars, "parquet": write_parquet, "folder": write_folder}
"""What writes a data set of each shape."""


def read_judged(output_dir: Path) -> list[dict[str, Any]]:
    """All that a run has judged, in the order of shards and rows."""
    return [row for path in sorted((output_dir / "judged").glob("*")) for row in pq.read_table(path).to_pylist()]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
