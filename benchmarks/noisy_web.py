"""Make noisy web data from drawn scenes: one text per picture, and many texts belong to another picture.

python -m benchmarks.noisy_web outputs/noisy_web      # 8,000 pictures, 40% of their texts wrong
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, Features, Image, Value

from blip_recipe.data.shapes import Scene, describe_scene, draw_scene, encode_picture, make_scene, make_scenes

SHARD = 1000
"""Pictures per shard."""


def main() -> None:
    """Write shards of parquet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--wrong", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    write_shards(options.folder, find_texts(options.pictures, options.wrong, options.seed))


class Found(NamedTuple):
    """A scene, its text, and whether the text belongs to another scene."""

    scene: Scene
    text: str
    is_wrong: bool


def find_texts(count: int, wrong: float, seed: int = 0) -> list[Found]:
    """Make `count` scenes that are in no split of the embedded data set; a share `wrong` gets wrong texts."""
    rng = random.Random(f"web {seed}")
    taken = {scene for split in ("train", "validation") for scene in make_scenes(split)}
    scenes: list[Scene] = []
    while len(scenes) < count:
        # All scenes of the test split are held out, so they cannot occur here.
        scene = make_scene(rng, held_out=False)
        if scene not in taken:
            taken.add(scene)
            scenes.append(scene)
    chosen = set(rng.sample(range(count), round(wrong * count)))
    return [
        Found(
            scene,
            rng.choice(describe_scene(_another(scene, scenes, rng) if number in chosen else scene)),
            number in chosen,
        )
        for number, scene in enumerate(scenes)
    ]


def _another(scene: Scene, scenes: list[Scene], rng: random.Random) -> Scene:
    """Choose a scene with other captions."""
    while describe_scene(other := rng.choice(scenes)) == describe_scene(scene):
        pass
    return other


def write_shards(folder: Path, found: list[Found]) -> None:
    """Write parquet shards of `image` and `caption`. The column `is_wrong` is only for evaluation."""
    folder.mkdir(parents=True)
    features = Features({"image": Image(), "caption": Value("string"), "is_wrong": Value("bool")})
    for number, first in enumerate(range(0, len(found), SHARD)):
        rows = [
            {"image": {"bytes": encode_picture(draw_scene(scene)), "path": None}, "caption": text, "is_wrong": is_wrong}
            for scene, text, is_wrong in found[first : first + SHARD]
        ]
        Dataset.from_list(rows, features=features).to_parquet(folder / f"train-{number:05}.parquet")


if __name__ == "__main__":
    main()
