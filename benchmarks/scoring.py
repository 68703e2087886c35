"""Compare the time for scoring captions with pycocoevalcap in the same run. From the checkout:

python -m benchmarks.scoring                                   # 1,000 and 5,000 images of COCO
python -m benchmarks.scoring --predictions P --references R    # your own captions

All times include tokenization; METEOR's include its start. The COCO captions come from pycocoevalcap's SPICE jar. The
first caption of an image is scored against the others, without one word that changes with each evaluation.
pycocoevalcap runs before and after our scorer, and the mean of its two runs counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from blip_recipe.errors import run_command
from blip_recipe.metrics.files import read_predictions, read_references
from blip_recipe.metrics.java import find_java, pycocoevalcap_file
from blip_recipe.metrics.scorer import CaptionScorer
from blip_recipe.metrics.scores import ImageId, check_same_images

Captions = dict[ImageId, str]
References = dict[ImageId, list[str]]

GROUPS = {"bleu, rouge_l, cider": ["bleu", "rouge_l", "cider"], "meteor": ["meteor"]}
EVALUATIONS = 3


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


def compare(captions: Captions, references: References) -> list[dict[str, float | int | str]]:
    """Measure the seconds of both sides for each group of metrics."""
    rows: list[dict[str, float | int | str]] = []
    for name, metrics in GROUPS.items():
        before = seconds_of(partial(score_with_pycocoevalcap, captions, references, metrics))
        with CaptionScorer(metrics) as scorer:
            ours = [
                seconds_of(partial(scorer.score, without_word(captions, number), references))
                for number in range(EVALUATIONS)
            ]
        after = seconds_of(partial(score_with_pycocoevalcap, captions, references, metrics))
        theirs, later = (before + after) / 2, sum(ours[1:]) / (EVALUATIONS - 1)
        rows.append(
            {
                "metrics": name,
                "images": len(captions),
                "pycocoevalcap": round(theirs, 3),
                "first evaluation": round(ours[0], 3),
                "later evaluations": round(later, 3),
                "first / pycocoevalcap": round(ours[0] / theirs, 3),
                "later / pycocoevalcap": round(later / theirs, 3),
            }
        )
    return rows


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
