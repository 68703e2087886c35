"""Compare the time for scoring captions with pycocoevalcap in the same run. From the checkout:

python -m benchmarks.scoring                                   # 1,000 and 5,000 images of COCO
python -m benchmarks.scoring --predictions P --references R    # your own captions

All times include tokenization, and METEOR's start unless it is loaded while captions are generated, for which a pause
stands. The COCO captions come from pycocoevalcap's SPICE jar. The first caption of an image is scored against the
others, without one word that changes with each evaluation. pycocoevalcap runs before and after our scorer, and the mean
of its two runs counts. CPU seconds include those of ended Java processes; they depend less on other programs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from blip_recipe.errors import run_command
from blip_recipe.metrics.files import read_predictions, read_references
from blip_recipe.metrics.java import find_java, pycocoevalcap_file
from blip_recipe.metrics.ptb_tables import read_automaton
from blip_recipe.metrics.scorer import CaptionScorer
from blip_recipe.metrics.scores import ImageId, check_same_images

Captions = dict[ImageId, str]
References = dict[ImageId, list[str]]

GROUPS = {"bleu, rouge_l, cider": ["bleu", "rouge_l", "cider"], "meteor": ["meteor"]}
EVALUATIONS = 3
GENERATION_SECONDS = 20
"""The pause that stands for the generation of captions."""


def main() -> None:
    """Time both sides, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000], help="Numbers of COCO images.")
    parser.add_argument("--predictions", type=Path, help="Your captions, instead of COCO's.")
    parser.add_argument("--references", type=Path, help="Their references. Default: the file of predictions.")
    parser.add_argument("--output", type=Path, default=RESULTS / "scoring_cpu.json")
    options = parser.parse_args()
    if options.predictions:
        captions = read_predictions(options.predictions)
        references = read_references(options.references or options.predictions)
        check_same_images(captions, references)
        sets = [(captions, references)]
    else:
        sets = [coco_set(count) for count in options.images]
    results = [row for captions, references in sets for row in compare(captions, references)]
    java = subprocess.run([find_java(), "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0]
    write_results(options.output, machine(["pycocoevalcap"], java=java), results)


def coco_set(count: int) -> tuple[Captions, References]:
    """The first captions of `count` images of COCO val2014, and their other captions as references."""
    with zipfile.ZipFile(pycocoevalcap_file("spice", "spice-1.0.jar")) as jar:
        annotations = json.loads(jar.read("coco/annotations/captions_val2014.json"))["annotations"]
    captions: References = {}
    for row in annotations:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    chosen = sorted(captions, key=str)[:count]
    return {each: captions[each][0] for each in chosen}, {each: captions[each][1:] for each in chosen}


def compare(captions: Captions, references: References) -> list[dict[str, Any]]:
    """Measure the seconds of both sides for each group of metrics."""
    rows: list[dict[str, Any]] = []
    for name, metrics in GROUPS.items():
        theirs = [measure(partial(score_with_pycocoevalcap, captions, references, metrics))]
        read_automaton.cache_clear()  # with the words that it has learned
        ours = our_seconds(captions, references, metrics)
        theirs.append(measure(partial(score_with_pycocoevalcap, captions, references, metrics)))
        seconds, cpu = (sum(each) / len(each) for each in zip(*theirs, strict=True))
        row = {"metrics": name, "images": len(captions), "pycocoevalcap": seconds} | ours
        row |= {f"{key} / pycocoevalcap": value / seconds for key, value in ours.items() if "CPU" not in key}
        row["first / pycocoevalcap, CPU"] = ours["first evaluation, CPU"] / cpu
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key, "") for key in keys} for row in rows]


def our_seconds(captions: Captions, references: References, metrics: list[str]) -> dict[str, float]:
    """The seconds of the first evaluation, the later ones, and the first one with METEOR loaded before it."""
    began = cpu_seconds()
    with CaptionScorer(metrics) as scorer:
        first = seconds_of(partial(scorer.score, without_word(captions, 0), references))
        if scorer.meteor:
            scorer.meteor.close()  # its CPU seconds count once it has ended
        first_cpu = cpu_seconds() - began
        scorer.score(without_word(captions, 0), references)
        later = [
            seconds_of(partial(scorer.score, without_word(captions, number), references))
            for number in range(1, EVALUATIONS)
        ]
    found = {
        "first evaluation": first,
        "first evaluation, CPU": first_cpu,
        "later evaluations": sum(later) / len(later),
    }
    if "meteor" in metrics:
        with CaptionScorer(metrics) as scorer:
            with scorer.loading():
                time.sleep(GENERATION_SECONDS)
            found["first after generation"] = seconds_of(partial(scorer.score, captions, references))
    return found


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """The seconds and the CPU seconds of a call."""
    began = cpu_seconds()
    return seconds_of(work), cpu_seconds() - began


def cpu_seconds() -> float:
    """The CPU seconds of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def without_word(captions: Captions, number: int) -> Captions:
    """Remove the word `number` of each caption, so all evaluations differ."""
    changed = {}
    for image_id, caption in captions.items():
        words = caption.split()
        del words[number : number + 1]
        changed[image_id] = " ".join(words)
    return changed


def score_with_pycocoevalcap(captions: Captions, references: References, metrics: list[str]) -> None:
    """Score as common scripts with pycocoevalcap do."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    known = PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in references.items()})
    tokenized = PTBTokenizer().tokenize({key: [{"caption": text}] for key, text in captions.items()})
    scorers = {"bleu": Bleu, "rouge_l": Rouge, "cider": Cider, "meteor": Meteor}
    with contextlib.redirect_stdout(sys.stderr):
        for metric in metrics:
            scorers[metric]().compute_score(known, tokenized)


if __name__ == "__main__":
    run_command(main)
