"""Measure the report of 5,000 pictures, and what a report costs a run. From the checkout:

python -m benchmarks.report            # write and load the page; needs Chromium or Chrome; a minute
python -m benchmarks.report --pairs 3  # also the quickstart recipe with and without a report, in turn; 13 minutes

The pictures are like photographs of COCO's size, each with five references and a caption of two models. Their
thumbnails have about 11 kB in a page of 5,000, twice as much as those of photographs. A page is loaded when its first
row and that row's picture are there.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from benchmarks.common import RESULTS, machine, seconds_of, write_results
from benchmarks.loading import made_photograph
from blip_recipe.captioning.trainer import CaptionTrainer
from blip_recipe.card.facts import ScoreFacts
from blip_recipe.card.report import ReportFacts, write_report
from blip_recipe.data.storage import BASELINE_PREDICTIONS_FILE, write_lines
from blip_recipe.errors import RecipeError, run_command

RECIPE = Path(__file__).parents[1] / "recipes" / "shapes_tiny.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SHOWN = """new Promise(done => {
    const look = () => document.querySelector(".row img")?.complete ? done() : requestAnimationFrame(look)
    look()
})"""
"""Waits for the first picture; the page forbids the `eval` of Playwright's own waiting."""
WORDS = [
    "a",
    "the",
    "two",
    "of",
    "on",
    "in",
    "with",
    "dog",
    "cat",
    "man",
    "woman",
    "street",
    "table",
    "red",
    "blue",
    "large",
    "small",
    "sitting",
    "standing",
    "riding",
]


def main() -> None:
    """Write the pages, load them, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[500, 2500, 5000], help="Pictures of a page.")
    parser.add_argument("--pairs", type=int, default=0, help="Runs of the quickstart recipe with and without a report.")
    parser.add_argument("--output", type=Path, default=RESULTS / "report_cpu.json")
    options = parser.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise RecipeError(f"There is no browser: install Chromium or Chrome (one of {', '.join(BROWSERS)}).")
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        rows = [measure_page(browser, Path(folder) / str(count), count) for count in options.pictures]
        described = machine(["pillow", "playwright"], browser=browser.version)
        browser.close()
    for pair in range(options.pairs):
        rows.append(measure_pair(pair))
    write_results(options.output, described, rows)


def measure_page(browser: Browser, folder: Path, count: int) -> dict[str, Any]:
    """Time the writing and the loading of a page of `count` pictures."""
    folder.mkdir()
    photographs = [made_photograph(number, 640, 480) for number in range(100)]
    rng = random.Random(0)
    references = [[made_caption(rng) for _ in range(5)] for _ in range(count)]
    ours, base = ([predict(number, each, rng) for number, each in enumerate(references)] for _ in range(2))
    write_lines(folder / BASELINE_PREDICTIONS_FILE, base)
    facts = ReportFacts("BLIP captions", [], [ScoreFacts("cider", "CIDEr", 1.0, 0.5)])

    def write() -> Path:
        return write_report(
            folder, ours, CaptionTrainer.task, facts, find_picture=lambda number: photographs[number % 100]
        )

    writing = seconds_of(write)
    page = folder / "report.html"
    return {
        "pictures": count,
        "megabytes of the page": round(page.stat().st_size / 1e6, 1),
        "pictures beside it": len(list((folder / "report_files").glob("*.jpg"))),
        "writing in seconds": round(writing, 1),
        "writing, ms a picture": round(1000 * writing / count, 2),
        "loading in seconds": round(statistics.median(load(browser, page) for _ in range(5)), 2),
    }


def load(browser: Browser, path: Path) -> float:
    """Seconds until the first row of a page and its picture are there, in a new profile."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    began = time.perf_counter()
    page.goto(path.as_uri())
    page.evaluate(SHOWN)
    seconds = time.perf_counter() - began
    context.close()
    return seconds


def made_caption(rng: random.Random) -> str:
    """A caption of eight to fourteen words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(8, 14)))


def predict(number: int, references: list[str], rng: random.Random) -> dict[str, Any]:
    """A line of `predictions.jsonl`."""
    scores = {name: rng.random() for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider")}
    return {"image_id": number, "caption": made_caption(rng), "references": references, "scores": scores}


def measure_pair(pair: int) -> dict[str, Any]:
    """Time the quickstart recipe with and without a report; the one that comes first alternates."""
    order = (True, False) if pair % 2 else (False, True)
    seconds = {report: seconds_of(partial(run_quickstart, report)) for report in order}
    return {
        "pictures": "quickstart recipe",
        "without a report in seconds": round(seconds[False], 1),
        "with a report in seconds": round(seconds[True], 1),
        "with / without": round(seconds[True] / seconds[False], 4),
    }


def run_quickstart(report: bool) -> None:
    """Run the quickstart recipe in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "blip_recipe.finetune", str(RECIPE), "--output_dir", folder]
        subprocess.run([*command, "--report", str(report).lower()], check=True, capture_output=True)


if __name__ == "__main__":
    run_command(main)
