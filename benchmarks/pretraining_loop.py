"""Close CapFilt's loop on drawn scenes: pre-train on what it kept, fine-tune, and compare with no pre-training.

python -m benchmarks.pretraining_loop                       # three seeds, minutes each on a free core
python -m benchmarks.pretraining_loop --place build/loop    # keep the trained models, and resume

Human captions are few. A captioner and a filter are trained on them, and CapFilt cleans a larger web set, in which 40%
of the texts are wrong. A new model is pre-trained with three losses on a mixture of the kept texts and the human
captions, and fine-tuned as a captioner on the human captions, with half the steps of the first captioner. All are
scored on the test split, which has only held-out combinations.

The first captioner is the one without pre-training that the exit code compares with: it is 1 if the captioner of the
loop does not have the higher CIDEr with every seed. The table also has a captioner without pre-training that is trained
for as many steps as pre-training and fine-tuning together.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.capfilt import Demonstration, Row, compare_texts, read_judged, start_filter
from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.noisy_web import find_texts, write_shards

SETTINGS = ("human", "web", "wrong", "steps", "filter_steps", "pretrain_steps", "finetune_steps")


def main() -> None:
    """Run the loop with each seed; print the table and write the JSON."""
    options = read_options()
    about = machine(["torch", "transformers", "datasets"], **{name: vars(options)[name] for name in SETTINGS})
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        place = (options.place or Path(folder)).resolve()
        for seed in options.seeds:
            loop = Loop(options, place / f"{seed}", seed)
            seconds = seconds_of(loop.run)
            rows.append({"seed": seed, **loop.results, "minutes": round(seconds / 60, 1)})
            write_results(options.output, about, rows)
    if any(row["CIDEr, loop"] <= row["CIDEr, first captioner"] for row in rows):
        sys.exit("expected a higher CIDEr with pre-training for every seed")


def read_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--human", type=int, default=1000, help="Scenes with human captions.")
    parser.add_argument("--web", type=int, default=4000, help="Scenes with one web text each.")
    parser.add_argument("--wrong", type=float, default=0.4, help="Share of wrong web texts.")
    parser.add_argument("--steps", type=int, default=400, help="Steps of the first captioner, with 32 pictures.")
    parser.add_argument("--filter_steps", type=int, default=400, help="Steps of the filter, with 32 pictures.")
    parser.add_argument("--pretrain_steps", type=int, default=400, help="Steps of pre-training, with 32 pictures.")
    parser.add_argument("--finetune_steps", type=int, default=200, help="Steps of fine-tuning, with 32 pictures.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--place", type=Path, help="Folder for models and data. Default: a temporary one.")
    parser.add_argument("--output", type=Path, default=RESULTS / "pretraining_loop_shapes_cpu.json")
    return parser.parse_args(argv)


class Loop(Demonstration):
    """The runs of one seed in one folder, and their results."""

    def __init__(self, options: argparse.Namespace, place: Path, seed: int) -> None:
        super().__init__(argparse.Namespace(**vars(options) | {"seed": seed, "clean": options.human}), place)

    def run(self) -> None:
        """Run all steps in order, except those that are finished."""
        options, place = self.options, self.place
        human = {"dataset_name": "shapes", "max_train_samples": options.human}
        self.train("first", "shapes_tiny", human, options.steps)
        if not (place / "filter_start").exists():
            start_filter(place / "first", place / "filter_start")
        start = {"model_name_or_path": place / "filter_start", "per_device_train_batch_size": 32}
        self.train("filter", "shapes_retrieval", human | start, options.filter_steps)
        found = find_texts(options.web, options.wrong, options.seed)
        if not (place / "web").exists():
            write_shards(place / "writing", found)
            (place / "writing").rename(place / "web")
        models = {"captioner_name_or_path": place / "first", "filter_name_or_path": place / "filter"}
        self.command("capfilt", "shapes_capfilt", "capfilt", models | {"dataset_name": place / "web"})
        texts = compare_texts(read_judged(place / "capfilt"), found)
        mixture: Row = {
            str(place / "capfilt" / "data"): 1.0,
            "human": {"weight": 1.0, **human},
        }
        both = {"dataset_mixture": mixture, "per_device_train_batch_size": 32}
        self.train("pretrained", "shapes_pretrain", both, options.pretrain_steps, drop=("train_split",))
        pretrained = {"model_name_or_path": place / "pretrained", "warmup_steps": 20}
        self.train("loop", "shapes_tiny", human | pretrained, options.finetune_steps)
        self.train("alone", "shapes_tiny", human, options.pretrain_steps + options.finetune_steps)
        totals = json.loads((place / "capfilt" / "all_results.json").read_text())
        scores = {name: self.score(model) for name, model in MODELS.items()}
        self.results = {
            "AUC of the filter": texts["AUC of the filter"],
            "web texts kept": totals["web_kept"],
            "synthetic texts kept": totals["synthetic_kept"],
            **{f"CIDEr, {name}": value for name, value in scores.items()},
        }


MODELS: dict[str, Any] = {"first captioner": "first", "as many steps without pre-training": "alone", "loop": "loop"}
"""The scored captioners by their names in the table."""


if __name__ == "__main__":
    main()
