"""Run CapFilt on drawn scenes with the real commands, to see whether it finds wrong texts and improves captions.

python -m benchmarks.capfilt                          # four trainings: minutes on free cores, 40 on busy ones
python -m benchmarks.capfilt --place build/capfilt    # keep the trained models, and resume

A captioner is trained from scratch on a small clean set, and a filter is trained from the captioner's weights. A larger
set has one text per scene, and 40% of the texts are wrong (they belong to other scenes). CapFilt cleans this set. Then
one captioner is trained from scratch on the noisy texts and one on the output of CapFilt, with the same number of steps
and pictures. Both are scored on the test split, which has only held-out combinations.

The exit code is 1 if the filter's AUC is below 0.95, or if CapFilt does not improve the captioner.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.noisy_web import SHARD, Found, find_texts, write_shards
from blip_recipe.captioning.modeling import load_captioner
from blip_recipe.data.shapes import describe_scene
from blip_recipe.models.processors import save_processor
from blip_recipe.models.tiny import WEIGHT_STD
from blip_recipe.retrieval.modeling import BlipForRetrieval

CHECKOUT = Path(__file__).parents[1]
LEAST_AUC = 0.95

SCORING_KEYS = (
    *("eval_split", "test_split", "max_eval_samples", "metrics"),
    *("load_best_model_at_end", "metric_for_best_model"),
)
"""Keys of recipes that a training without evaluation does not have."""

Row = dict[str, Any]


def main() -> None:
    """Train, clean, train again and score; print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=4000, help="Scenes to train the captioner and the filter on.")
    parser.add_argument("--web", type=int, default=8000, help="Scenes with one text each.")
    parser.add_argument("--wrong", type=float, default=0.4, help="Share of wrong texts.")
    parser.add_argument("--steps", type=int, default=700, help="Steps of each captioner, with 32 pictures.")
    parser.add_argument("--filter_steps", type=int, default=400, help="Steps of the filter, with 32 pictures.")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--place", type=Path, help="Folder for models and data. Default: a temporary one.")
    parser.add_argument("--output", type=Path, default=RESULTS / "capfilt_shapes_cpu.json")
    options = parser.parse_args()
    about = machine(["torch", "transformers", "datasets"])
    with tempfile.TemporaryDirectory() as folder:
        place = (options.place or Path(folder)).resolve()
        is_new = not (place / "captioner").exists()
        demonstration = Demonstration(options, place)
        seconds = seconds_of(demonstration.run)
    row = demonstration.results | ({"minutes": round(seconds / 60, 1)} if is_new else {})
    write_results(options.output, about, [row])
    if row["AUC of the filter"] < LEAST_AUC or row["CIDEr, CapFilt"] <= row["CIDEr, noisy texts"]:
        sys.exit(f"expected a filter AUC of at least {LEAST_AUC} and a higher CIDEr with CapFilt")


class Demonstration:
    """The runs in one folder, and their results."""

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        self.options, self.place = options, place
        settings = ("clean", "web", "wrong", "steps", "filter_steps", "seed")
        self.results: Row = {key: vars(options)[key] for key in settings}

    def run(self) -> None:
        """Run all steps in order, except those that are finished."""
        options, place = self.options, self.place
        clean = {"dataset_name": "shapes", "max_train_samples": options.clean}
        self.train("captioner", "shapes_tiny", clean, options.steps)
        if not (place / "filter_start").exists():
            start_filter(place / "captioner", place / "filter_start")
        start = {"model_name_or_path": place / "filter_start", "per_device_train_batch_size": 32}
        self.train("filter", "shapes_retrieval", clean | start, options.filter_steps)
        found = find_texts(options.web, options.wrong, options.seed)
        if not (place / "web").exists():
            write_shards(place / "writing", found)
            (place / "writing").rename(place / "web")
        models = {"captioner_name_or_path": place / "captioner", "filter_name_or_path": place / "filter"}
        self.command("capfilt", "shapes_capfilt", "capfilt", models | {"dataset_name": place / "web"})
        self.train("on_noisy", "shapes_tiny", {"dataset_name": place / "web"}, options.steps)
        self.train("on_capfilt", "shapes_tiny", {"dataset_name": place / "capfilt" / "data"}, options.steps)
        self.results |= compare_texts(read_judged(place / "capfilt"), found)
        names = {"clean": "captioner", "noisy texts": "on_noisy", "CapFilt": "on_capfilt"}
        self.results |= {f"CIDEr, {name}": self.score(model) for name, model in names.items()}

    def train(self, name: str, recipe: str, keys: Row, steps: int, drop: tuple[str, ...] = ()) -> None:
        """Train a model with a packaged recipe, without the keys of `drop`."""
        # Keep the last step: a validation split would choose the best step by clean captions.
        whole = {"max_steps": steps, "seed": self.options.seed, "save_strategy": "no", "eval_strategy": "no"}
        keys = keys | whole | {"dataloader_num_workers": 0}
        self.command("finetune", recipe, name, keys, ("num_train_epochs", *SCORING_KEYS, *drop))

    def score(self, model: str) -> float:
        """Compute the test CIDEr of a captioner."""
        folder = self.place / f"{model}_scores"
        if not (folder / "all_results.json").exists():
            keys: Row = {
                "model": self.place / model,
                "dataset_name": "shapes",
                "eval_split": "test",
                "metrics": "cider",
            }
            keys |= {"output_dir": folder, "per_device_eval_batch_size": 64}
            run_command("evaluate", [f"--{key}={value}" for key, value in keys.items()])
        return round(json.loads((folder / "all_results.json").read_text())["eval_cider"], 4)

    def command(self, command: str, recipe: str, name: str, keys: Row, drop: tuple[str, ...] = ()) -> None:
        """Run a command with a packaged recipe and some other keys, unless it is finished already."""
        if (self.place / name / "all_results.json").exists():
            return
        content = json.loads((CHECKOUT / "recipes" / f"{recipe}.json").read_text())
        content = {key: value for key, value in content.items() if key not in drop}
        content |= {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
        file = self.place / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content | {"output_dir": str(self.place / name)}, indent=1))
        run_command(command, [str(file)])


def start_filter(captioner: Path, folder: Path) -> None:
    """Save a filter with the captioner's weights, as BLIP's captioner and filter start from the same model.

    Both have the same image encoder. Their BERTs have the same layers, but another attention mask.
    """
    torch.manual_seed(0)
    model, processor, _ = load_captioner(str(captioner))
    model_filter = BlipForRetrieval(model.config)
    for projection in (model_filter.vision_proj, model_filter.text_proj):
        torch.nn.init.normal_(projection.weight, std=WEIGHT_STD)
    weights = {name.replace("text_decoder.bert.", "text_encoder."): each for name, each in model.state_dict().items()}
    known = model_filter.state_dict()
    model_filter.load_state_dict({name: each for name, each in weights.items() if name in known}, strict=False)
    model_filter.save_pretrained(folder)
    save_processor(processor, folder)


def read_judged(output_dir: Path) -> list[Row]:
    """Read all texts that CapFilt judged, with the numbers of their scenes as `place`."""
    return [
        row | {"place": number * SHARD + row["source_row"]}
        for number, path in enumerate(sorted((output_dir / "judged").iterdir()))
        for row in pq.read_table(path).to_pylist()
    ]


def compare_texts(judged: list[Row], found: list[Found]) -> Row:
    """Measure how well the filter separates right and wrong web texts, and how many written captions are true."""
    web = [row for row in judged if row["kind"] == "web"]
    wrong = {row["place"]: found[row["place"]].is_wrong for row in web}
    scores: dict[bool, list[float]] = {
        fate: [row["score"] for row in web if wrong[row["place"]] == fate] for fate in (False, True)
    }
    written = [row for row in judged if row["kind"] == "synthetic"]
    true = {id(row): row["text"] in describe_scene(found[row["place"]].scene) for row in written}
    kept = [row for row in written if row["kept"]]
    return {
        "AUC of the filter": round(area_under_curve(scores[False], scores[True]), 4),
        "right texts kept": share(row["kept"] for row in web if not wrong[row["place"]]),
        "wrong texts dropped": share(not row["kept"] for row in web if wrong[row["place"]]),
        "written captions that are true": share(true[id(row)] for row in written),
        "of those kept": share(true[id(row)] for row in kept),
        "written captions kept": share(row["kept"] for row in written),
    }


def area_under_curve(right: list[float], wrong: list[float]) -> float:
    """The ROC AUC: how often a right text has a higher score than a wrong one; ties count half."""
    ordered = sorted(wrong)
    below = [bisect_left(ordered, score) + bisect_right(ordered, score) for score in right]
    return sum(below) / (2 * len(right) * len(wrong))


def share(values: Iterable[bool]) -> float:
    """The share of `values` that are true, from 0 to 1."""
    found = list(values)
    return round(sum(found) / max(1, len(found)), 4)


def run_command(command: str, words: list[str]) -> None:
    """Run one of the package's commands, which must succeed."""
    print(f"python -m blip_recipe.{command} {' '.join(words)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", f"blip_recipe.{command}", *words], check=True, cwd=CHECKOUT)


if __name__ == "__main__":
    main()
