"""Compare the look at the tokenised captions before training with reading the data once. From the checkout:

python -m benchmarks.look                                   # 100,000 rows that share 200 pictures; 5 minutes
python -m benchmarks.look --rows 5000 --pictures 50         # a quick run

Reading is what every run does first: `check_splits` opens each picture of each row, on all cores. The look tokenises
the captions, counts those that are cut, and compares each word with what the tokenizer makes of it. Pictures are JPEGs
of 320 x 240 pixels on disk, a quarter of COCO's, so that the ratio is larger than with usual pictures. Captions have 6
to 16 words, and the tokenizer is BERT's, or one with made-up words if its vocabulary is not there. The ratios are the
result; times depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import string
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from transformers import BertTokenizer

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.loading import made_photograph
from blip_recipe.captioning.training_arguments import CaptionTrainingArguments
from blip_recipe.data.arguments import CaptionDataArguments
from blip_recipe.data.checks import check_splits
from blip_recipe.errors import run_command
from blip_recipe.training.caption_texts import PromptedTexts, look_at_captions
from blip_recipe.training.texts import MAX_POSITIONS

SHARED = Path(os.environ.get("BLIP_RECIPE_SHARED", Path(__file__).parents[2] / "shared"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main() -> None:
    """Read the rows, look at their captions, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="Rows, each with a picture.")
    parser.add_argument("--pictures", type=int, default=200, help="Picture files that the rows share.")
    parser.add_argument("--vocabulary", type=Path, default=SHARED / "data" / "bert-base-uncased-vocab.txt")
    parser.add_argument("--output", type=Path, default=RESULTS / "look_cpu.json")
    options = parser.parse_args()
    vocabulary = read_vocabulary(options.vocabulary)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})
    words = [word for word in vocabulary if word.isalpha()]
    args = CaptionTrainingArguments("outputs/look", use_cpu=True, prompt="a picture of ")
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(Path(folder), options.pictures)
        sets = {captions: make_rows(files, words, options.rows, captions) for captions in (1, 5)}
        reading = seconds_of(lambda: check_splits({"train": sets[1]}, CaptionDataArguments(dataset_name="made")))
        results = [compare(rows, captions, reading, args, tokenizer) for captions, rows in sets.items()]
    write_results(options.output, machine(["datasets", "tokenizers", "transformers", "pillow"]), results)


def compare(rows: Dataset, captions: int, reading: float, args: Any, tokenizer: Any) -> dict[str, Any]:
    """Time the look at the captions of `rows`, with the same captions as references."""

    def look() -> object:
        captions, references = (PromptedTexts.read([rows], args.prompt) for _ in range(2))
        return look_at_captions(args, tokenizer, captions, references, MAX_POSITIONS)

    seconds = seconds_of(look)
    return {
        "rows": len(rows),
        "captions a row": captions,
        "reading in seconds": round(reading, 1),
        "look in seconds": round(seconds, 2),
        "look / reading": round(seconds / reading, 4),
    }


def read_vocabulary(path: Path) -> list[str]:
    """BERT's vocabulary, or made-up words."""
    if path.is_file():
        return path.read_text(encoding="utf-8").splitlines()
    rng = random.Random(0)
    made = {"".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(30_000)}
    return [*SPECIAL, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *sorted(made)]


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write JPEGs like photographs, and return their paths."""
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(made_photograph(number, 320, 240))
    return list(map(str, paths))


def make_rows(files: list[str], words: list[str], count: int, captions: int) -> Dataset:
    """Make rows of `files` in turn, with captions of 6 to 16 words, of which a few are frequent and most are rare."""
    rng = random.Random(0)
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    drawn = iter(rng.choices(words, weights, k=16 * count))
    made = [" ".join(next(drawn) for _ in range(rng.randint(6, 16))) for _ in range(count)]
    texts = [rng.choices(made, k=captions) for _ in range(count)]
    features = {"image": ImageFeature(decode=False), "image_id": Value("int64"), "captions": List(Value("string"))}
    return Dataset.from_dict(
        {
            "image": [{"bytes": None, "path": files[row % len(files)]} for row in range(count)],
            "image_id": range(count),
            "captions": texts,
        },
        features=Features(features),
    )


if __name__ == "__main__":
    run_command(main)
