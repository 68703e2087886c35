"""Measure the gain of self-critical training on drawn scenes with several seeds. From the checkout:

python -m benchmarks.scst_seeds                          # seeds 1, 2 and 3: two commands each
python -m benchmarks.scst_seeds --seeds 7 --folder kept  # keep the runs there, and resume them

Each seed trains a model with `recipes/shapes_early.json`, which stops early, and continues it with
`recipes/shapes_scst.json`. The second command scores both models on the test split with the same settings. The exit
code is 1 if CIDEr rises by less than `LEAST_GAIN` for any seed, or if captions have more repetitions than before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine, write_results
from blip_recipe.data.shapes import COLOURS, FORMS, PLACES
from blip_recipe.data.storage import read_json
from blip_recipe.errors import run_command

CHECKOUT = Path(__file__).parents[1]
LEAST_GAIN = 0.15
SCORES = {
    "CIDEr": "cider",
    "exact match": "exact_match",
    "repeated 4-grams": "repeated_ngrams",
    "distinct words": "distinct_words",
    "words a caption": "caption_length",
}
NAMES: dict[str, Iterable[str]] = {"colours": COLOURS, "forms": FORMS, "places": PLACES}


def main() -> None:
    """Train with every seed, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, help="Folder of the runs. Default: a temporary one.")
    parser.add_argument("--output", type=Path, default=RESULTS / "scst_seeds_cpu.json")
    options = parser.parse_args()
    about = machine(["torch", "transformers"])
    with tempfile.TemporaryDirectory() as folder:
        rows = [run_seed(seed, (options.folder or Path(folder)).resolve()) for seed in options.seeds]
    smallest = min(row["gain"] for row in rows)
    write_results(options.output, about, [*rows, {"seed": "smallest", "gain": smallest}])
    if smallest < LEAST_GAIN:
        sys.exit(f"CIDEr rose by {smallest:.1%}: expected at least {LEAST_GAIN:.0%} with every seed")
    if any(row["repeated 4-grams: after"] > row["repeated 4-grams: before"] for row in rows):
        sys.exit("captions have more repetitions than before: expected no rise with any seed")


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """Run both stages with `seed`, and return the test scores before and after the second one."""
    first, second = folder / f"early_{seed}", folder / f"scst_{seed}"
    finetune("shapes_early", seed, first)
    finetune("shapes_scst", seed, second, "--model_name_or_path", str(first))
    results = read_json(second / "all_results.json")
    scores = {
        f"{score}: {when}": round(results[f"{prefix}_{name}"], 4)
        for score, name in SCORES.items()
        for when, prefix in (("before", "baseline"), ("after", "test"))
    }
    return {
        "seed": seed,
        "gain": round(results["test_cider"] / results["baseline_cider"] - 1, 4),
        **scores,
        **{
            f"{kind} named rightly: {when}": share_named_correctly(run / "predictions.jsonl", names)
            for kind, names in NAMES.items()
            for when, run in (("before", first), ("after", second))
        },
        "best step": read_json(second / "trainer_state.json")["best_global_step"],
        "cross entropy: s": round(read_json(first / "all_results.json")["train_runtime"]),
        "self-critical: s": round(results["train_runtime"]),
    }


def share_named_correctly(predictions: Path, names: Iterable[str]) -> float:
    """The share of `names` in the references that the captions have too, for any object."""
    total = correct = 0
    for line in predictions.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        true, found = (
            Counter({name: text.count(name) for name in names}) for text in (record["references"][0], record["caption"])
        )
        total += true.total()
        correct += (true & found).total()
    return round(correct / total, 4)


def finetune(recipe: str, seed: int, output_dir: Path, *words: str) -> None:
    """Run a recipe on the CPU in its own process."""
    command = [sys.executable, "-m", "blip_recipe.finetune", f"recipes/{recipe}.json", "--use_cpu", "true"]
    subprocess.run([*command, "--seed", str(seed), "--output_dir", str(output_dir), *words], cwd=CHECKOUT, check=True)


if __name__ == "__main__":
    run_command(main)
