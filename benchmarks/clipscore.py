"""Compare CLIPScore and RefCLIPScore with the authors' own code. From the checkout:

git clone https://github.com/jmhessel/clipscore && pip install clip-anytorch scikit-learn
python -m benchmarks.clipscore clipscore my_folder/train

The first 50 pictures of an image folder, each with its first caption as candidate and the others as references, are
scored by `clipscore.py` and by `ClipScorer`. Both use one untrained CLIP of transformers with the size of pictures, the
vocabulary and the tokenization of ViT-B/32: the authors' code reads texts with the tokenizer of OpenAI's `clip`.

Criterion: no score of a picture differs by more than 1e-6; else the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from benchmarks.common import RESULTS, machine, write_results
from blip_recipe import ClipScorer, score_captions
from blip_recipe.errors import RecipeError, run_command

LARGEST_DIFFERENCE = 1e-6
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
METRICS = ("clip_score", "ref_clip_score")


def main() -> None:
    """Score the pictures with both, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a clone of jmhessel/clipscore")
    parser.add_argument("pictures", type=Path, help="an image folder with a metadata.jsonl with lists of captions")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS / "clipscore_cpu.json")
    options = parser.parse_args()
    if not (options.checkout / "clipscore.py").exists():
        raise RecipeError(f"{options.checkout} has no clipscore.py: expected a clone of jmhessel/clipscore.")
    rows = read_rows(options.pictures, options.count)
    with TemporaryDirectory() as folder:
        clip = save_clip(Path(folder))
        theirs, ours = authors_scores(options.checkout, clip, rows), own_scores(clip, rows)
    found: list[dict[str, Any]] = [
        {
            "score": name,
            "pictures": len(rows),
            "mean": round(float(ours[:, column].mean()), 4),
            "largest difference": float(np.abs(theirs[:, column] - ours[:, column]).max()),
        }
        for column, name in enumerate(METRICS)
    ]
    write_results(options.output, machine(["torch", "transformers", "clip-anytorch"]), found)
    if not all(row["largest difference"] <= LARGEST_DIFFERENCE for row in found):
        sys.exit(f"expected differences of at most {LARGEST_DIFFERENCE}")


def read_rows(pictures: Path, count: int) -> list[dict[str, Any]]:
    """The first rows of an image folder, with the paths of the pictures."""
    lines = (pictures / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [row | {"path": str(pictures / row["file_name"])} for row in rows]


def save_clip(folder: Path) -> Path:
    """Save an untrained CLIP for pictures of 224 pixels, with the tokenizer of OpenAI's `clip`."""
    tokenizer = importlib.import_module("clip.clip")._tokenizer
    ranked = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.encoder))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, ranked)]) + "\n", encoding="utf-8")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    end = len(tokenizer.encoder) - 1
    ends = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = {**LAYERS, **ends, "vocab_size": end + 1, "max_position_embeddings": 77}
    vision = {**LAYERS, "image_size": 224, "patch_size": 32}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.5 if weights.ndim > 1 else 1.0)  # so that it looks at its input
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


class AuthorsClip:
    """The two methods of OpenAI's CLIP that the authors' code calls, by transformers' CLIP."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = CLIPModel.from_pretrained(folder)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """The features of pictures `(pictures, width)`."""
        found = self.model.get_image_features(pixel_values=pixels)
        return getattr(found, "pooler_output", found)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        """The features of texts `(texts, width)`."""
        found = self.model.get_text_features(input_ids=ids)
        return getattr(found, "pooler_output", found)


def authors_scores(checkout: Path, clip: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """CLIPScore and RefCLIPScore `(pictures, 2)` by the authors' code."""
    sys.path.insert(0, str(checkout.resolve()))
    theirs, model = importlib.import_module("clipscore"), AuthorsClip(clip)
    images = theirs.extract_all_images([row["path"] for row in rows], model, "cpu", num_workers=0)
    captions, references = [row["captions"][0] for row in rows], [row["captions"][1:] for row in rows]
    _, clip_scores, features = theirs.get_clip_score(model, images, captions, "cpu")
    _, closest = theirs.get_refonlyclipscore(model, references, features, "cpu")
    # The harmonic mean is a line of its `main`.
    return np.stack([clip_scores, 2 * clip_scores * closest / (clip_scores + closest)], 1)


def own_scores(clip: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """CLIPScore and RefCLIPScore `(pictures, 2)` by this package."""
    found = score_captions(
        {row["path"]: row["captions"][0] for row in rows},
        {row["path"]: row["captions"][1:] for row in rows},
        list(METRICS),
        images={row["path"]: row["path"] for row in rows},
        scorers=[ClipScorer.load(str(clip), device="cpu")],
    )
    return np.array([[found.per_image[row["path"]][name] for name in METRICS] for row in rows])


if __name__ == "__main__":
    run_command(main)
